"""One step: features of the whole batch, the loss, and its gradients; twice with SAM; then the optimiser.

Every step goes one way, whether its batch is in memory at once or in chunks, in one process or in several:

    chunks ──embed──► features of this rank ──gather──► features of all ranks
                                                              │ loss
    chunks ◄─backward── gradient of this rank's features ◄────┘

The graph is cut at the features. A batch of one chunk keeps its graph from the first embedding; with more, features
are computed without gradient, and each chunk once more when the gradient of its features is known (GradCache, Gao et
al. 2021, arXiv:2101.06983). Every rank computes the loss of the whole batch, so a rank's features get their whole
gradient, and the gradients of towers and heads are sums over ranks and chunks. B images and C captions of a batch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cliplet.config import LossConfig
from cliplet.data.batch import Batch, moved
from cliplet.models import DualEncoder
from cliplet.models.dual_encoder import Output
from cliplet.training.averages import WeightAverage
from cliplet.training.batch_norm import moves_once, running_statistics, stands_still
from cliplet.training.cpu import MatrixAttention
from cliplet.training.distillation import Distillation
from cliplet.training.distributed import Ranks
from cliplet.training.objective import Lesson, is_taught, loss_terms, total
from cliplet.training.sam import Sam

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """Scalars of a step, still on the device so that reading them is the caller's choice."""

    loss: torch.Tensor  # the mean over the step's batches
    terms: dict[str, torch.Tensor]  # the loss's terms, without their weights
    logit_scale: torch.Tensor
    grad_norm: torch.Tensor  # before clipping
    skipped: torch.Tensor  # whether loss or gradients were no numbers, so that nothing was changed


@dataclass(frozen=True)
class Parts:
    """One batch as a step sees it: this rank's chunks, on the device, what teachers make of them, and the sizes of
    every rank's part."""

    chunks: list[Batch]
    counts: list[list[int]]  # pictures and captions of each rank
    teachers: list[tuple[torch.Tensor, torch.Tensor]]  # each one's features of this rank's pictures and captions

    def __len__(self) -> int:
        return len(self.chunks)

    def owners(self, rank: int) -> torch.Tensor:
        """caption_image_C of this rank's captions, in the batch of all ranks."""
        first, owners = sum(pictures for pictures, _ in self.counts[:rank]), []
        for chunk in self.chunks:
            owners.append(chunk.caption_image_C + first)
            first += len(chunk)
        return torch.cat(owners)


@dataclass(frozen=True)
class Gradients:
    """What one pass over the step's batches gives, beside the gradients themselves."""

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]
    logit_scale: torch.Tensor


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Mixed precision for the towers, and what makes it fast; losses see float32 whatever this is."""
    attention = MatrixAttention() if device.type == "cpu" and precision == "bf16" else nullcontext()
    with torch.autocast(device.type, DTYPES.get(precision, torch.bfloat16), enabled=precision in DTYPES), attention:
        yield


class Embedder(nn.Module):
    """The towers and heads of a model: what turns batches into features. The temperature is not in it, for it comes
    after the features of all ranks are gathered."""

    def __init__(self, model: DualEncoder):
        super().__init__()
        self.parts = nn.ModuleList(
            [model.image_tower, model.text_tower, model.image_head, model.text_head, model.shared_head]
        )
        self._model = (model,)  # not a module of this one

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit features of the pictures (B, D) and of the captions (C, D)."""
        return embed(self._model[0], batch)


def embed(model: DualEncoder, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features of the pictures (B, D) and of the captions (C, D); from the outputs of frozen towers, where the
    batch carries these."""
    if batch.pixels_B3HW is not None:
        image_BD = model.encode_image(batch.pixels_B3HW)
    else:
        assert batch.image_BW is not None
        image_BD = model.project_image(batch.image_BW)
    if batch.text_states is not None:
        return image_BD, model.project_text(batch.text_states, batch.attention_mask_CL)
    assert batch.input_ids_CL is not None and batch.attention_mask_CL is not None
    return image_BD, model.encode_text(batch.input_ids_CL, batch.attention_mask_CL)


class Stepper:
    """Makes steps. Model, optimiser and the rest are its caller's; it holds what is the same in every step."""

    def __init__(
        self,
        model: DualEncoder,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
        *,
        precision: str = "fp32",
        chunk_size: int | None = None,
        sam: Sam | None = None,
        clip_norm: float | None = None,
        ranks: Ranks | None = None,
        sync_batch_norm: bool = True,
        average: WeightAverage | None = None,
        distillation: Distillation | None = None,
    ):
        """To be made anew whenever other parameters become trainable. `chunk_size`: pictures of this rank that are
        embedded at once; None: all of them. `sync_batch_norm`: whether batch norm normalises by the pictures of all
        ranks, as `normalise_over_ranks` makes it; else running statistics become the mean of what the ranks have, step
        by step. `average` follows the weights. `distillation` makes the terms of teachers whose features come with the
        batches; its projections train too."""
        self.model, self.optimizer = model, optimizer
        self.device = next(model.parameters()).device
        self.scaler = scaler or torch.amp.GradScaler(self.device.type, enabled=False)
        self.precision, self.chunk_size, self.sam, self.clip_norm = precision, chunk_size, sam, clip_norm
        self.ranks, self.sync_batch_norm = ranks or Ranks(), sync_batch_norm
        self.average, self.distillation = average, distillation
        self.embedder = Embedder(model)
        self._summing: DistributedDataParallel | None = None  # made by the first step, of several ranks
        embedded = {id(parameter) for parameter in self.embedder.parameters()}
        self.parameters = [*model.parameters(), *(distillation.parameters() if distillation else ())]
        self.others = [parameter for parameter in self.parameters if id(parameter) not in embedded]

    def step(self, batches: Sequence[Batch], loss: LossConfig, seed: tuple[int, ...] = (0,)) -> StepResult:
        """Gradients of the mean loss over `batches` (this rank's part of each), clip, step, clamp the temperature.

        With SAM the gradients are taken twice, and the second ones count. They are unscaled once in each pass,
        before anything is made of their size; running statistics of batch norm move once in all. A step whose loss or
        gradients are not finite changes nothing, neither weights nor statistics. The random numbers of dropout are a
        function of `seed`, the rank and the chunk alone, in both passes of SAM the same. Nothing here waits for the
        device. The result is the first pass's, but for the norm.
        """
        parts = [self._parts(batch) for batch in batches]
        if self.ranks.size > 1 and self._summing is None:
            self._summing = self._wrapped(parts[0].chunks[0])
        with moves_once(self.model) as statistics:
            first = self._gradients(parts, loss, seed)
            if self.sam is not None:
                # update() closes the first pass for the scaler, which unscales once between two updates.
                self.scaler.update()
                with self.sam.climbed(), stands_still(self.model):
                    self._gradients(parts, loss, seed)
            parameters = [parameter for parameter in self.parameters if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            skip = ~(first.loss.isfinite() & norm.isfinite())
            statistics.unless(skip)
        if not self.sync_batch_norm:
            self.ranks.mean_(running_statistics(self.model))
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        self._update(skip)
        return StepResult(first.loss, first.terms, first.logit_scale, norm, skip)

    def _update(self, skip: torch.Tensor) -> None:
        """The optimiser's step, unless it is to be skipped, which fused optimisers find out on the device."""
        self.optimizer.grad_scale, self.optimizer.found_inf = None, skip.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.scaler.update()
        self.model.temperature.clamp_()
        if self.average is not None:
            self.average.update(unless=skip)

    def _parts(self, batch: Batch) -> Parts:
        """The batch in chunks. Every rank makes as many as any other, even one that lacks pictures, for SyncBatchNorm
        and DistributedDataParallel need all ranks in each of them."""
        counts = self.ranks.exchange(len(batch), len(batch.caption_image_C))
        most = max(pictures for pictures, _ in counts)
        number = 1 if self.chunk_size is None else math.ceil(most / self.chunk_size)
        chunks = [batch] if number == 1 else batch.chunks(number)
        teachers = [(moved(image_BT, self.device), moved(text_CT, self.device)) for image_BT, text_CT in batch.teachers]
        return Parts([replace(chunk, teachers=()).to(self.device) for chunk in chunks], counts, teachers)

    def _gradients(self, batches: Sequence[Parts], loss: LossConfig, seed: tuple[int, ...]) -> Gradients:
        """Unscaled gradients of the mean loss over the batches."""
        self.optimizer.zero_grad(set_to_none=True)
        results = []
        for number, parts in enumerate(batches):
            seeds = [_seed(*seed, number, self.ranks.rank, chunk) for chunk in range(len(parts))]
            share, last = 1 / len(batches), number == len(batches) - 1
            results.append(self._one_batch(parts, seeds, loss, share, last))
        self.ranks.mean_([parameter.grad for parameter in self.others if parameter.grad is not None])
        self.scaler.unscale_(self.optimizer)
        means = {name: torch.stack([result.terms[name] for result in results]).mean() for name in results[0].terms}
        return Gradients(torch.stack([result.loss for result in results]).mean(), means, results[-1].logit_scale)

    def _one_batch(self, parts: Parts, seeds: Sequence[int], loss: LossConfig, share: float, last: bool) -> Gradients:
        """Adds the gradients of `share` times the loss of one batch; `last`: of the step's batches."""
        if len(parts) == 1:
            live = self._embed(parts.chunks[0], seeds[0], sum_over_ranks=last)
            result, gradients = self._loss(live, parts, loss, share)
            self._backward(live, gradients)
            return result
        with torch.no_grad():
            chunks = [self._embed(part, seed) for part, seed in zip(parts.chunks, seeds, strict=True)]
        features = torch.cat([image for image, _ in chunks]), torch.cat([text for _, text in chunks])
        result, gradients = self._loss(features, parts, loss, share)
        images = gradients[0].split([len(image) for image, _ in chunks])
        texts = gradients[1].split([len(text) for _, text in chunks])
        with stands_still(self.model):  # these pictures are counted already
            for number, (part, seed) in enumerate(zip(parts.chunks, seeds, strict=True)):
                live = self._embed(part, seed, sum_over_ranks=last and number == len(parts) - 1)
                self._backward(live, (images[number], texts[number]))
        return result

    def _embed(self, part: Batch, seed: int, sum_over_ranks: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of a chunk. `sum_over_ranks`: its backward adds up the gradients that all ranks have by then."""
        torch.manual_seed(seed)
        with autocast(self.device, self.precision):
            if self._summing is None or not torch.is_grad_enabled():
                return self.embedder(part)
            with nullcontext() if sum_over_ranks else self._summing.no_sync():
                return self._summing(part)

    def _wrapped(self, chunk: Batch) -> DistributedDataParallel | None:
        """What sums gradients over ranks, while they are computed; nothing where no gradient comes this way.

        It must know whether some parameters never get a gradient, as those of a layer that a tower has but does not
        use; looking for them in every step would take time, so one trial tells.
        """
        trained = [parameter for parameter in self.embedder.parameters() if parameter.requires_grad]
        if not trained:
            return None
        with stands_still(self.model), autocast(self.device, self.precision):
            live = [features for features in self.embedder(chunk) if features.requires_grad]
        torch.autograd.backward([features.sum() for features in live])
        idle = any(parameter.grad is None for parameter in trained)
        self.optimizer.zero_grad(set_to_none=True)
        # Statistics of batch norm are the same on every rank already. The option's name depends on torch's version.
        known = inspect.signature(DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        settings: dict[str, Any] = {buffers: False, "find_unused_parameters": idle}
        summing = DistributedDataParallel(self.embedder, **settings)
        # After its first pass it lays its buckets out anew, and with more than two ranks a sum's rounding depends on
        # the layout. So that pass is none of the run's: a resumed run adds up as the first one did.
        with stands_still(self.model), autocast(self.device, self.precision):
            live = [features for features in summing(chunk) if features.requires_grad]
        torch.autograd.backward([features.sum() for features in live])
        self.optimizer.zero_grad(set_to_none=True)
        return summing

    def _loss(
        self, features: tuple[torch.Tensor, torch.Tensor], parts: Parts, loss: LossConfig, share: float
    ) -> tuple[Gradients, tuple[torch.Tensor, torch.Tensor]]:
        """The loss of all ranks' features, and the (scaled) gradients of `share` times it for those of this rank; the
        temperature's go to its parameters."""
        image_BD, text_CD = (one.detach().requires_grad_() for one in features)
        output, owners_C = self._of_all_ranks(image_BD, text_CD, parts)
        terms = loss_terms(output, owners_C, loss, self._lesson(output, parts, loss))
        value = total(terms, loss)
        self.scaler.scale(value * share).backward()
        result = Gradients(
            value.detach(), {name: term.detach() for name, term in terms.items()}, output.logit_scale.detach()
        )
        assert image_BD.grad is not None and text_CD.grad is not None
        return result, (image_BD.grad, text_CD.grad)

    def _of_all_ranks(self, image_BD: torch.Tensor, text_CD: torch.Tensor, parts: Parts) -> tuple[Output, torch.Tensor]:
        """The batch as one process would see it: this rank's features with gradient among the others' without; and
        its caption_image."""
        ranks = self.ranks
        owners_C = parts.owners(ranks.rank)
        if ranks.size > 1:
            images, captions = zip(*parts.counts, strict=True)
            all_images = ranks.gather(image_BD.detach(), images)
            all_texts = ranks.gather(text_CD.detach(), captions)
            all_images[ranks.rank], all_texts[ranks.rank] = image_BD, text_CD
            image_BD, text_CD = torch.cat(all_images), torch.cat(all_texts)
            owners_C = torch.cat(ranks.gather(owners_C, captions))
        scale = self.model.temperature(image_BD, text_CD)
        return Output(image_BD, text_CD, scale, self.model.logit_bias), owners_C

    def _lesson(self, output: Output, parts: Parts, loss: LossConfig) -> Lesson | None:
        """What teachers say of the batch of all ranks; None where the loss does not ask them."""
        if self.distillation is None or not is_taught(loss):
            return None
        images, captions = zip(*parts.counts, strict=True)
        features = [
            (torch.cat(self.ranks.gather(image_BT, images)), torch.cat(self.ranks.gather(text_CT, captions)))
            for image_BT, text_CT in parts.teachers
        ]
        return self.distillation.lesson(output, features, loss)

    def _backward(self, live: tuple[torch.Tensor, torch.Tensor], gradients: tuple[torch.Tensor, torch.Tensor]) -> None:
        """From the features of a chunk to the parameters."""
        pairs = [(one, gradient) for one, gradient in zip(live, gradients, strict=True) if one.requires_grad]
        if pairs:  # there are none where the temperature alone trains
            # DistributedDataParallel gives the mean over ranks where the sum is wanted.
            torch.autograd.backward([one for one, _ in pairs], [gradient * self.ranks.size for _, gradient in pairs])


def _seed(*parts: int) -> int:
    """One number of many, such that other parts give unrelated random numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
