"""The one model class: two towers, two heads, one temperature, and the tokenizer that belongs to them.

Shapes: B images, C captions, L tokens, D embed_dim, H = W = image_size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from cliplet import model_folder
from cliplet.config import ModelConfig
from cliplet.errors import ModelError
from cliplet.models.heads import ConvFfnHead, build_head, build_shared_head
from cliplet.models.huggingface import current_names
from cliplet.models.sources import load_exactly, read_weights
from cliplet.models.temperature import build_temperature
from cliplet.models.text import build_text_tower, text_tower_skeleton
from cliplet.models.towers import ImageTower, TextTower
from cliplet.models.vision import build_image_tower, image_tower_skeleton
from cliplet.runtime.tokenizer import Tokenizer


class Output(NamedTuple):
    """What losses need of a batch."""

    image_features: torch.Tensor  # (B, D), unit length
    text_features: torch.Tensor  # (C, D), unit length
    logit_scale: torch.Tensor  # the factor for their cosines, a scalar
    logit_bias: torch.Tensor | None  # what is added after that, a scalar; None: nothing


class DualEncoder(nn.Module):
    """Pictures and captions in one space. `build` makes a new one, `from_pretrained` opens a saved one."""

    def __init__(self, config: ModelConfig, image_tower: ImageTower, text_tower: TextTower, tokenizer: Tokenizer):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.image_head = build_head(config.image_head, image_tower.width, config.embed_dim, "image")
        self.text_head = build_head(config.text_head, text_tower.width, config.embed_dim, "text")
        if isinstance(self.text_head, ConvFfnHead):
            text_tower.check_states()
        self.shared_head = build_shared_head(config.shared_head, config.embed_dim)
        self.temperature = build_temperature(config.temperature)
        bias = config.logit_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))
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

        `captions`: what a tokenizer learns its vocabulary from, where it is to be trained. `say` hears of sources
        that failed. Raises ModelError when no source of some weights loads, or parts do not fit each other.
        """
        text_tower, tokenizer = build_text_tower(config.text, captions, say)
        image_tower = build_image_tower(config.image, config.preprocess.image_size, say)
        return cls(config, image_tower, text_tower, tokenizer)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> DualEncoder:
        """The model of a model folder, in evaluation mode on the CPU. Needs nothing but the folder.

        Raises ModelError for a folder that is none, is of another format version, or is damaged.
        """
        description = model_folder.read_description(folder)
        config = description.model
        tokenizer = Tokenizer.from_file(Path(folder) / model_folder.TOKENIZER, config.text.context_length)
        model_folder.refuse_other_tokenizer(folder, description, tokenizer)
        if not (Path(folder) / model_folder.WEIGHTS).is_file():
            raise ModelError(
                f"{folder}: holds exported graphs and no weights, which PyTorch needs",
                "Use it with cliplet.load and engine auto, or open the folder that it was exported from.",
            )
        model = cls.skeleton(config, tokenizer, description.image_architecture, description.text_architecture)
        weights = read_weights(Path(folder) / model_folder.WEIGHTS)
        for name, tower in (("image_tower", model.image_tower), ("text_tower", model.text_tower)):
            if tower.config.kind == "huggingface":  # saved, perhaps, under another version of transformers
                weights = current_names(tower.model, weights, f"{name}.model.")
        load_exactly(model, weights, str(folder))
        return model.eval()

    @classmethod
    def skeleton(
        cls,
        config: ModelConfig,
        tokenizer: Tokenizer,
        image_architecture: dict[str, Any] | None,
        text_architecture: dict[str, Any] | None,
    ) -> DualEncoder:
        """A model with random weights, built from what is saved of one and from nothing else: its tokenizer and what
        its towers say in `architecture`."""
        image_tower = image_tower_skeleton(config.image, config.preprocess.image_size, image_architecture)
        text_tower = text_tower_skeleton(config.text, tokenizer, text_architecture)
        return cls(config, image_tower, text_tower, tokenizer)

    def save_pretrained(self, folder: str | Path, card: str = "", metrics: dict | None = None) -> None:
        """Writes a model folder, whole or not at all. `card`: the README's text; `metrics`: what was measured."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        model_folder.write(folder, self.description(), weights, self.tokenizer, card=card, metrics=metrics)

    def description(self) -> model_folder.Description:
        """What a model folder's config.json says."""
        return model_folder.Description(
            model=self.config,
            tokenizer_entries=self.tokenizer.vocab_size,
            image_architecture=self.image_tower.architecture,
            text_architecture=self.text_tower.architecture,
        )

    def encode_image(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """Unit image features (B, D) in float32 (or float64). uint8 pixels are normalised here, where the model runs;
        floats are taken as normalised already."""
        return self.project_image(self.image_tower_output(pixels_B3HW))

    def encode_text(self, input_ids_CL: torch.Tensor, attention_mask_CL: torch.Tensor) -> torch.Tensor:
        """Unit text features (C, D) in float32 (or float64); padding has no part in them.

        Raises ModelError for texts of more tokens than the context length; the tokenizer cuts them, nobody else does.
        """
        return self.project_text(self.text_tower_output(input_ids_CL, attention_mask_CL), attention_mask_CL)

    @property
    def text_head_reads_tokens(self) -> bool:
        """Whether the text head reads a state for each token and their mask, and not one vector a text."""
        return isinstance(self.text_head, ConvFfnHead)

    def image_tower_output(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """What the image head reads of pictures: (B, image_tower.width). Pixels as `encode_image` takes them."""
        if pixels_B3HW.dtype == torch.uint8:
            pixels_B3HW = (pixels_B3HW.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        return self.image_tower(pixels_B3HW)

    def text_tower_output(self, input_ids_CL: torch.Tensor, attention_mask_CL: torch.Tensor) -> torch.Tensor:
        """What the text head reads of texts: (C, text_tower.width), or (C, L, width), any value at padding, where it
        reads tokens. Raises ModelError for texts that are too long."""
        length, longest = input_ids_CL.shape[1], self.config.text.context_length
        if length > longest:
            raise ModelError(
                f"a text of {length} tokens is longer than the context length, {longest}",
                "Let the model's tokenizer cut it, or train with a larger model.text.context_length.",
            )
        tower = self.text_tower.states if self.text_head_reads_tokens else self.text_tower
        return tower(input_ids_CL, attention_mask_CL)

    def project_image(self, output_BW: torch.Tensor) -> torch.Tensor:
        """Unit image features (B, D) of what the image tower gave."""
        return self._unit(self.image_head(output_BW))

    def project_text(self, output: torch.Tensor, attention_mask_CL: torch.Tensor | None = None) -> torch.Tensor:
        """Unit text features (C, D) of what the text tower gave; a head that reads tokens needs the mask too."""
        return self._unit(
            self.text_head(output, attention_mask_CL) if self.text_head_reads_tokens else self.text_head(output)
        )

    def _unit(self, features: torch.Tensor) -> torch.Tensor:
        features = self.shared_head(features)
        return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)

    def forward(self, pixels_B3HW: torch.Tensor, input_ids_CL: torch.Tensor, attention_mask_CL: torch.Tensor) -> Output:
        """Features of pictures and captions, and what makes logits of their cosines."""
        image_BD = self.encode_image(pixels_B3HW)
        text_CD = self.encode_text(input_ids_CL, attention_mask_CL)
        return Output(image_BD, text_CD, self.temperature(image_BD, text_CD), self.logit_bias)

    @property
    def logit_scale(self) -> torch.Tensor:
        """The factor that cosines are multiplied by: exponentiated, a scalar. A dynamic temperature depends on the
        features; this is then its factor where they are all alike."""
        return self.temperature()

    def count_parameters(self) -> int:
        """All parameters, trained or not."""
        return sum(parameter.numel() for parameter in self.parameters())
