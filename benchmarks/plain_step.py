"""A training step as small projects write it, to hold cliplet's against.

The same modules in fp32, channels first in memory and run eagerly, a DataLoader with two workers, Pillow and
torchvision's transforms, captions tokenized with their batch and padded to 32, torch.optim.AdamW as it comes, and the
loss read after each step.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from typing import Any

import tokenizers
import torch
from PIL import Image
from torchvision import transforms
from training_parts import SEED
from transformers import PreTrainedTokenizerFast

from cliplet.config import RunConfig
from cliplet.data.records import ImageText, Records
from cliplet.models import DualEncoder
from cliplet.runtime.tokenizer import Tokenizer
from cliplet.training.objective import loss_in_stage, loss_terms, total
from cliplet.training.stages import set_trainable

CONTEXT, WORKERS = 32, 2


class Plain:
    """The same as a script would do it."""

    def __init__(self, config: RunConfig, records: Records):
        torch.manual_seed(SEED)
        self.model = DualEncoder.build(config.model, records.captions())
        set_trainable(self.model, config.train.stages[-1])
        self.model.train().to(memory_format=torch.contiguous_format)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.optim.text_lr, weight_decay=config.optim.weight_decay
        )
        self.loss = loss_in_stage(config, config.train.stages[-1])
        self.loader = torch.utils.data.DataLoader(
            Pictures(config, records),
            batch_size=config.train.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=WORKERS,
            collate_fn=Collate(self.model.tokenizer),
        )
        self.module = self.model
        self.about = f"plain: fp32, {torch.get_num_threads()} threads, {WORKERS} processes of the loader"

    def batches(self, epoch: int) -> Generator[Any, None, None]:
        """An epoch's batches, of which only the first are asked for; its workers end with it."""
        torch.manual_seed(SEED + epoch)
        yield from self.loader

    def step(self, batch: Any) -> float:
        """Makes a step; gives its loss."""
        pixels_B3HW, input_ids_CL, attention_mask_CL, caption_image_C = batch
        self.optimizer.zero_grad()
        output = self.model(pixels_B3HW, input_ids_CL, attention_mask_CL)
        loss = total(loss_terms(output, caption_image_C, self.loss), self.loss)
        loss.backward()
        self.optimizer.step()
        self.model.temperature.clamp_()
        return loss.item()


class Pictures(torch.utils.data.Dataset):
    """A picture as normalised floats, by Pillow and torchvision, and captions drawn for it."""

    def __init__(self, config: RunConfig, records: Records):
        preprocess, augment = config.model.preprocess, config.augment
        size = preprocess.image_size
        if augment.crop_scale == (1.0, 1.0):
            view: list[Any] = [transforms.Resize((size, size))]
        else:
            enlarged = round(size / preprocess.crop_fraction)
            view = [
                transforms.Resize(enlarged, transforms.InterpolationMode.BICUBIC),
                transforms.RandomResizedCrop(size, augment.crop_scale),
            ]
        if augment.flip:
            view.append(transforms.RandomHorizontalFlip(augment.flip))
        self.transform = transforms.Compose(
            [*view, transforms.ToTensor(), transforms.Normalize(preprocess.mean, preprocess.std)]
        )
        self.samples: list[ImageText] = list(records)
        self.captions = config.data.captions_per_image

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, list[str]]:
        sample = self.samples[index]
        pixels = self.transform(Image.open(sample.image).convert("RGB"))
        return pixels, random.sample(sample.captions, self.captions)


class Collate:
    """Samples to a batch; captions through transformers' tokenizer, padded to the longest that the model reads."""

    def __init__(self, tokenizer: Tokenizer):
        backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token=backend.id_to_token(tokenizer.pad_id)
        )

    def __call__(self, samples: list[tuple[torch.Tensor, list[str]]]) -> tuple[torch.Tensor, ...]:
        captions = [caption for _, drawn in samples for caption in drawn]
        owners = [row for row, (_, drawn) in enumerate(samples) for _ in drawn]
        tokens = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
        )
        pixels = torch.stack([pixels for pixels, _ in samples])
        return pixels, tokens["input_ids"], tokens["attention_mask"], torch.tensor(owners)
