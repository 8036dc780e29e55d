"""The one model class: two towers, two heads, one temperature, and the tokenizer that belongs to them.

Shapes: B images, C captions, L tokens, D embed_dim, H = W = image_size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from cliplet import model_folder
from cliplet.config import ModelConfig
from cliplet.errors import ModelError
from cliplet.models.heads import build_head
from cliplet.models.sources import load_exactly, read_weights
from cliplet.models.temperature import LearnedTemperature
from cliplet.models.text import HuggingFaceTower, TransformerTower
from cliplet.models.tokenizers import train_bpe
from cliplet.models.vision import ImageTower
from cliplet.runtime.tokenizer import Tokenizer


class DualEncoder(nn.Module):
    """Pictures and captions in one space. `build` makes a new one, `from_pretrained` opens a saved one."""

    def __init__(self, config: ModelConfig, text_tower: HuggingFaceTower | TransformerTower, tokenizer: Tokenizer):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.image_tower = ImageTower(config.image, config.preprocess.image_size)
        self.text_tower = text_tower
        self.image_head = build_head(config.image_head, self.image_tower.width, config.embed_dim)
        self.text_head = build_head(config.text_head, self.text_tower.width, config.embed_dim)
        self.temperature = LearnedTemperature(config.temperature)
        # Part of the configuration, so they are not saved with the weights.
        mean, std = torch.tensor(config.preprocess.mean), torch.tensor(config.preprocess.std)
        self.pixel_mean: torch.Tensor
        self.pixel_std: torch.Tensor
        self.register_buffer("pixel_mean", 255 * mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", 255 * std.view(1, 3, 1, 1), persistent=False)

    @classmethod
    def build(
        cls, config: ModelConfig, captions: Iterable[str] = (), say: Callable[[str], None] = lambda message: None
    ) -> DualEncoder:
        """A new model with the pretrained weights that `config` names, and random ones elsewhere.

        `captions`: what a text tower from scratch learns its vocabulary from. `say` hears of sources that failed.
        Raises ModelError when no source of some weights loads.
        """
        text = config.text
        text_tower: HuggingFaceTower | TransformerTower
        if text.kind == "huggingface":
            text_tower, tokenizer = HuggingFaceTower.from_sources(text, say)
        else:
            tokenizer = train_bpe(captions, text.vocab_size, text.context_length)
            text_tower = TransformerTower(text, tokenizer.vocab_size)
        model = cls(config, text_tower, tokenizer)
        model.image_tower.load_pretrained(config.preprocess.image_size, say)
        return model

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> DualEncoder:
        """The model of a model folder, in evaluation mode on the CPU. Needs nothing but the folder.

        Raises ModelError for a folder that is none, is of another format version, or is damaged.
        """
        description = model_folder.read_description(folder)
        tokenizer = Tokenizer.from_file(Path(folder) / model_folder.TOKENIZER, description.model.text.context_length)
        model = cls.skeleton(description.model, tokenizer.to_json(), description.text_architecture)
        load_exactly(model, read_weights(Path(folder) / model_folder.WEIGHTS), str(folder))
        return model.eval()

    @classmethod
    def skeleton(cls, config: ModelConfig, tokenizer: str, text_architecture: dict[str, Any] | None) -> DualEncoder:
        """A model with random weights, built from what is saved of one and from nothing else.

        `tokenizer`: the text of its tokenizer.json; `text_architecture`: its text tower's `architecture`.
        """
        opened = Tokenizer.from_json(tokenizer, config.text.context_length)
        text_tower: HuggingFaceTower | TransformerTower
        if config.text.kind == "huggingface":
            if text_architecture is None:
                raise ModelError("the text tower is of kind huggingface, but its text_architecture is missing")
            text_tower = HuggingFaceTower.from_architecture(config.text, text_architecture)
        else:
            text_tower = TransformerTower(config.text, opened.vocab_size)
        return cls(config, text_tower, opened)

    def save_pretrained(self, folder: str | Path, card: str = "", metrics: dict | None = None) -> None:
        """Writes a model folder, whole or not at all. `card`: the README's text; `metrics`: what was measured."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        model_folder.write(
            folder,
            model_folder.Description(model=self.config, text_architecture=self.text_tower.architecture),
            weights,
            self.tokenizer,
            card=card,
            metrics=metrics,
        )

    def encode_image(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """Unit image features (B, D) in float32. uint8 pixels are normalised here, where the model runs; floats
        are taken as normalised already."""
        if pixels_B3HW.dtype == torch.uint8:
            pixels_B3HW = (pixels_B3HW.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        return F.normalize(self.image_head(self.image_tower(pixels_B3HW)).float(), dim=-1)

    def encode_text(self, input_ids_CL: torch.Tensor, attention_mask_CL: torch.Tensor) -> torch.Tensor:
        """Unit text features (C, D) in float32; padding has no part in them."""
        return F.normalize(self.text_head(self.text_tower(input_ids_CL, attention_mask_CL)).float(), dim=-1)

    def forward(
        self, pixels_B3HW: torch.Tensor, input_ids_CL: torch.Tensor, attention_mask_CL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Image features (B, D), text features (C, D), and the factor for their cosines."""
        return (
            self.encode_image(pixels_B3HW),
            self.encode_text(input_ids_CL, attention_mask_CL),
            self.logit_scale,
        )

    @property
    def logit_scale(self) -> torch.Tensor:
        """The factor that cosines are multiplied by: exponentiated, a scalar."""
        return self.temperature()

    def count_parameters(self) -> int:
        """All parameters, trained or not."""
        return sum(parameter.numel() for parameter in self.parameters())
