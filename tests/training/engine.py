"""A small model and batches for it, and what one graph over all of them gives: the reference for steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F

from cliplet.config import (
    DistilConfig,
    ImageTowerConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PreprocessConfig,
    TemperatureConfig,
    TextTowerConfig,
    TokenizerConfig,
)
from cliplet.data.batch import Batch
from cliplet.data.teacher_store import TeacherInfo
from cliplet.models import DualEncoder
from cliplet.models.dual_encoder import Output
from cliplet.training.distillation import Distillation
from cliplet.training.objective import loss_terms, total
from cliplet.training.optim import build_optimizer, set_learning_rate

SENTENCE = "a red boat on the lake two dogs run in deep snow child with blue ball an old man reads newspaper"
WORDS = SENTENCE.split()
LOSSES = {
    "info_nce": LossConfig(),
    "first caption": LossConfig(soft_targets=False),
    "siglip": LossConfig(info_nce=0.0, siglip=1.0),
    "hard negatives": LossConfig(hard_negative=0.5),
}
TAUGHT = {
    "feature": LossConfig(info_nce=0.0, feature=1.0),
    "logit": LossConfig(info_nce=0.0, logit=1.0),
    "affinity": LossConfig(info_nce=0.0, affinity=1.0),
    "all": LossConfig(feature=0.5, logit=0.7, affinity=0.3, feature_distance="mse"),
    "interactive": LossConfig(feature=0.5, logit=0.7, interactive=0.4),
}


def build(
    temperature: str = "learned", dropout: float = 0.0, batch_norm: bool = False, bias: float | None = None
) -> DualEncoder:
    """The same model each time: test_resnet at 32 pixels and a transformer of width 32."""
    torch.manual_seed(0)
    config = ModelConfig(
        embed_dim=16,
        image=ImageTowerConfig(name="test_resnet", train_batch_norm=batch_norm),
        text=TextTowerConfig(
            width=32,
            layers=2,
            heads=4,
            context_length=24,
            dropout=dropout,
            embedding_dropout=dropout,
            tokenizer=TokenizerConfig(vocab_size=300),
        ),
        temperature=TemperatureConfig(kind=temperature),
        logit_bias=bias,
        preprocess=PreprocessConfig(image_size=32),
    )
    model = DualEncoder.build(config, [" ".join(WORDS)] * 3)
    with torch.no_grad():  # timm begins its residual branches at zero, through which no gradient passes
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.train()


def batch_of(model: DualEncoder, pictures: int, seed: int = 0) -> Batch:
    """A batch whose pictures have 1, 2 or 3 captions of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (pictures, 3, 32, 32), generator=generator, dtype=torch.uint8)
    counts = [1 + (row + seed) % 3 for row in range(pictures)]
    owners_C = torch.arange(pictures).repeat_interleave(torch.tensor(counts))
    texts = []
    for _ in range(len(owners_C)):
        length = int(torch.randint(2, 9, (1,), generator=generator))
        picked = torch.randint(len(WORDS), (length,), generator=generator).tolist()
        texts.append(" ".join(WORDS[one] for one in picked))
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer(texts))
    return Batch(pixels, ids, mask, owners_C)


def taught(batch: Batch, widths: Sequence[int]) -> Batch:
    """The batch with what teachers of these widths may say of it."""
    assert batch.pixels_B3HW is not None
    generator = torch.Generator().manual_seed(int(batch.pixels_B3HW.sum()))
    counts = len(batch), len(batch.caption_image_C)
    teachers = [[F.normalize(torch.randn(rows, width, generator=generator)) for rows in counts] for width in widths]
    return replace(batch, teachers=tuple((image, text) for image, text in teachers))


def distillation_of(model: DualEncoder, widths: Sequence[int], **settings: float | bool) -> Distillation:
    """What a student of such teachers has beside itself; their scales are 10, 11, ..."""
    infos = [
        TeacherInfo(f"teacher {at}", "", "", 32, (0.5,) * 3, (0.5,) * 3, width, 10.0 + at, "fp32")
        for at, width in enumerate(widths)
    ]
    torch.manual_seed(1)
    return Distillation(DistilConfig(teachers=("one",), **settings), infos, model.config.embed_dim)


def shared_out(batch: Batch, rank: int, ranks: int) -> Batch:
    """The part of a batch that a rank would be given: pictures rank, rank + ranks, ..."""
    rows = torch.arange(rank, len(batch), ranks)
    mine = (batch.caption_image_C[:, None] == rows).nonzero()
    captions, owners = mine[:, 0], mine[:, 1]
    assert batch.pixels_B3HW is not None and batch.input_ids_CL is not None and batch.attention_mask_CL is not None
    part = Batch(batch.pixels_B3HW[rows], batch.input_ids_CL[captions], batch.attention_mask_CL[captions], owners)
    return replace(part, teachers=tuple((image[rows], text[captions]) for image, text in batch.teachers))


def sgd(model: DualEncoder, distillation: Distillation | None = None) -> torch.optim.Optimizer:
    """Plain gradient descent with the rate 1: weights tell the gradients."""
    beside = distillation.parameters() if distillation else ()
    optimizer = build_optimizer(model, OptimConfig(optimizer="sgd", betas=(0.0, 0.9), weight_decay=0.0), beside)
    set_learning_rate(optimizer, dict.fromkeys(("image", "text", "head"), 1e-3), 1.0)
    return optimizer


def loss_of(
    model: DualEncoder, batch: Batch, loss: LossConfig, distillation: Distillation | None = None
) -> torch.Tensor:
    """The loss in one graph."""
    output: Output = model(batch.pixels_B3HW, batch.input_ids_CL, batch.attention_mask_CL)
    lesson = distillation.lesson(output, batch.teachers, loss) if distillation else None
    return total(loss_terms(output, batch.caption_image_C, loss, lesson), loss)


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What `.grad` holds, by name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = 1e-5
) -> None:
    """Each parameter's gradient differs by less than `tolerance` of its norm. Where the true one is 0, as that of a
    bias before batch norm, only rounding is left, and is held against the largest gradient there is."""
    assert ours.keys() == theirs.keys()
    largest = max(float(gradient.norm()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        error, norm = float((ours[name] - gradient).norm()), float(gradient.norm())
        assert error <= tolerance * max(norm, 1e-3 * largest), f"{name}: off by {error / max(norm, 1e-30):.2e}"
