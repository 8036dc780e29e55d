"""Before a run: a model to start from that is there already, and whether a model takes the pictures of training."""

from __future__ import annotations

from pathlib import Path

import torch

from cliplet.config import ModelConfig, RunConfig, differences
from cliplet.errors import TrainingError
from cliplet.hub import is_hub_name
from cliplet.models import DualEncoder
from cliplet.models.pretrained import open_model
from cliplet.models.sources import load_exactly
from cliplet.runtime.engines import OPEN_CLIP

# In these a run may differ from the model it starts from: they say where weights came from, or how it trains.
FREE = (
    "image.weights",
    "image.architecture",
    "image.train_batch_norm",
    "text.sources",
    "text.architecture",
    "text.tokenizer",
    "text.dropout",
    "text.embedding_dropout",
    "image_head.dropout",
    "text_head.dropout",
    "temperature.init",
    "temperature.minimum",
    "temperature.maximum",
    "preprocess.crop_fraction",
    "preprocess.resize",
)


def start_model(source: str, config: ModelConfig) -> DualEncoder:
    """A model of configuration `config` with weights and tokenizer of `source`: a model folder, a run folder, a name
    on the hub, or `open_clip:ARCHITECTURE/PRETRAINED`. Raises TrainingError naming each key in which the two models
    differ."""
    if not source.startswith(OPEN_CLIP) and not is_hub_name(source) and not Path(source).exists():
        raise TrainingError(
            f"{source}: there is no model to start from",
            "Train it first (the folder names its recipe), or name another: --train.start-from FOLDER.",
        )
    start = open_model(source)
    ours = config
    if config.logit_bias is not None and start.config.logit_bias is not None:  # only where it starts differs
        ours = config.model_copy(update={"logit_bias": start.config.logit_bias})
    changed = [f"model.{line}" for line in differences(start.config, ours) if not line.startswith(FREE)]
    if changed:
        raise TrainingError(
            f"{source}: is another model than the configuration describes:\n  " + "\n  ".join(changed),
            "Set these keys as the starting model has them (left of the arrows), or start from another.",
        )
    model = DualEncoder.skeleton(config, start.tokenizer, start.image_tower.architecture, start.text_tower.architecture)
    load_exactly(model, start.state_dict(), source)
    return model


def refuse_other_size(model: DualEncoder, config: RunConfig) -> None:
    """Raises TrainingError where the image tower does not take augmented views of train.image_size pixels."""
    size = config.train.image_size
    if size in (None, config.model.preprocess.image_size):
        return
    model.eval()
    try:
        with torch.no_grad():
            model.image_tower(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    except (AssertionError, RuntimeError, ValueError, IndexError) as error:
        raise TrainingError(
            f"train.image_size {size}: the image tower does not take such pictures: {str(error).splitlines()[0]}",
            f"Leave it out; the tower was built for {config.model.preprocess.image_size} pixels.",
        ) from None
