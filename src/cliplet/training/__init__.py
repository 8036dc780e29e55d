"""Training. `train` is the way in; the other files are its parts."""

from cliplet.training.run import Run, train
from cliplet.training.trainer import Interrupted

__all__ = ["Interrupted", "Run", "train"]
