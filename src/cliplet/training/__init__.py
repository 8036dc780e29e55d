"""Training. `train` is the way in; the other files are its parts."""

from cliplet.training.run import Run, train

__all__ = ["Run", "train"]
