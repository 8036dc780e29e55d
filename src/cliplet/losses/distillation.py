"""A student learns from the features of a teacher, or of several. B images, C captions, N rows of either, D the
student's width, T the teacher's.

All features are unit rows. The teacher's are data: no gradient reaches them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from cliplet.losses._logits import caption_logits, full_precision, scaled_logits
from cliplet.losses.contrastive import image_to_text, text_to_image


class TeacherFeatures(NamedTuple):
    """What one teacher makes of a batch."""

    image: torch.Tensor  # (B, T), unit rows
    text: torch.Tensor  # (C, T), unit rows
    logit_scale: torch.Tensor | float  # the factor for their cosines


def feature_mse(student_ND: torch.Tensor, teacher_ND: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of unit features over rows and columns; a scalar in float32 (or float64).

    The feature term of TinyCLIP-ConvFFN. As the mean runs over D columns, it is `feature_cosine` times 2 / D: from 0
    to 4 / D, so its weight depends on the width.

    Raises ValueError where the widths differ, and where there are no rows or not as many on both sides.
    """
    return F.mse_loss(*_comparable(student_ND, teacher_ND))


def feature_cosine(student_ND: torch.Tensor, teacher_ND: torch.Tensor) -> torch.Tensor:
    """1 - cosine of unit features, mean over rows, from 0 to 2; a scalar in float32 (or float64).

    The feature term of TinyCLIP-ConvFFN on a scale that does not depend on the width.

    Raises ValueError like `feature_mse`.
    """
    student_ND, teacher_ND = _comparable(student_ND, teacher_ND)
    return 1 - (student_ND * teacher_ND).sum(1).mean()


def feature_loss(
    image_BD: torch.Tensor,
    text_CD: torch.Tensor,
    teacher_image_BD: torch.Tensor,
    teacher_text_CD: torch.Tensor,
    term: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = feature_mse,
) -> torch.Tensor:
    """Mean of `term` (`feature_mse`, `feature_cosine`) on images and on captions, as TinyCLIP-ConvFFN has it; a scalar.

    Images and captions weigh the same, however many captions a picture has. Raises ValueError like `term`.
    """
    return (term(image_BD, teacher_image_BD) + term(text_CD, teacher_text_CD)) / 2


def logit_kl(
    image_BD: torch.Tensor,
    text_CD: torch.Tensor,
    logit_scale: torch.Tensor | float,
    teacher_image_BT: torch.Tensor,
    teacher_text_CT: torch.Tensor,
    teacher_logit_scale: torch.Tensor | float,
) -> torch.Tensor:
    """KL divergence of the student's image-text similarities from the teacher's; a scalar in float32 (or float64).

    Each side's cosines are multiplied by its own scale (the factor, not its logarithm). Rows of the (B, C) matrix are
    distributions over captions, columns over images; KL(teacher || student) is averaged over rows, over columns, and
    over the two. Only similarities are compared, so D and T may differ. The logit term of TinyCLIP-ConvFFN, after the
    affinity mimicking of TinyCLIP (Wu et al. 2023, arXiv:2309.12314). TinyCLIP-ConvFFN lets it train no temperature:
    pass `logit_scale.detach()` for that.

    Raises ValueError where the shapes do not fit each other.
    """
    teacher = TeacherFeatures(teacher_image_BT, teacher_text_CT, teacher_logit_scale)
    return ensemble_kl(image_BD, text_CD, logit_scale, [teacher])


def ensemble_kl(
    image_BD: torch.Tensor,
    text_CD: torch.Tensor,
    logit_scale: torch.Tensor | float,
    teachers: Sequence[TeacherFeatures],
) -> torch.Tensor:
    """`logit_kl` from the mean of several teachers; a scalar in float32 (or float64).

    Teachers are averaged as distributions: the mean of their probabilities, each at its own scale. Their spaces have
    nothing to do with each other, so that a mean of their vectors would mean nothing, and widths may differ.

    Raises ValueError where the shapes do not fit each other, and without a teacher.
    """
    if not teachers:
        raise ValueError("there is no teacher to learn from")
    logits_BC = scaled_logits(image_BD, text_CD, logit_scale)
    with torch.no_grad():
        theirs = [scaled_logits(*teacher).to(logits_BC.dtype) for teacher in teachers]
        for teacher, teacher_BC in zip(teachers, theirs, strict=True):
            if logits_BC.shape != teacher_BC.shape:
                raise ValueError(
                    f"the student compares {len(image_BD)} images with {len(text_CD)} captions, "
                    f"the teacher {len(teacher.image)} with {len(teacher.text)}: they must see the same batch"
                )
        rows_BC, columns_CB = _mean_of(theirs), _mean_of([one.T for one in theirs])
    return (_row_kl(rows_BC, logits_BC) + _row_kl(columns_CB, logits_BC.T)) / 2


def interactive(
    image_BD: torch.Tensor,
    text_CD: torch.Tensor,
    logit_scale: torch.Tensor | float,
    teacher_image_BD: torch.Tensor,
    teacher_text_CD: torch.Tensor,
    caption_image_C: torch.Tensor,
    soft_targets: bool = True,
) -> torch.Tensor:
    """InfoNCE across the two models: student's images look for the teacher's captions, student's captions for the
    teacher's images; the mean of the two, a scalar in float32 (or float64).

    Scale, `caption_image_C` and `soft_targets` as in `info_nce`; the scale is the student's. The interactive
    contrastive term of CLIP-KD (Yang et al. 2024, arXiv:2307.12732).

    Raises ValueError where the teacher's width is not the student's, and where other shapes do not fit.
    """
    teacher_image_BD, teacher_text_CD = teacher_image_BD.detach(), teacher_text_CD.detach()
    _comparable(image_BD, teacher_image_BD), _comparable(text_CD, teacher_text_CD)
    images_BC, owned_BC = caption_logits(image_BD, teacher_text_CD, logit_scale, caption_image_C)
    captions_BC = scaled_logits(teacher_image_BD, text_CD, logit_scale)
    return (image_to_text(images_BC, owned_BC, soft_targets) + text_to_image(captions_BC, caption_image_C)) / 2


def _mean_of(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Logarithms of the mean of the distributions that the rows of each matrix are."""
    each = [one.log_softmax(1) for one in logits]
    return each[0] if len(each) == 1 else torch.stack(each).logsumexp(0) - math.log(len(each))


def _row_kl(target_NM: torch.Tensor, student_NM: torch.Tensor) -> torch.Tensor:
    """KL(target || student) of rows, mean over rows: of logarithms of probabilities and of logits."""
    # both as logarithms: no logarithm of a probability that has rounded to 0
    return F.kl_div(student_NM.log_softmax(1), target_NM, reduction="batchmean", log_target=True)


def _comparable(student_ND: torch.Tensor, teacher_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in the student's dtype, float32 at least, the teacher's without gradient; ValueError where shapes differ."""
    if student_ND.ndim != 2 or teacher_ND.ndim != 2 or len(student_ND) != len(teacher_ND) or not len(student_ND):
        raise ValueError(
            f"student features {tuple(student_ND.shape)} and teacher features {tuple(teacher_ND.shape)} do not fit: "
            "both need the same rows, at least one"
        )
    if student_ND.shape[1] != teacher_ND.shape[1]:
        raise ValueError(
            f"the student's features are {student_ND.shape[1]} wide and the teacher's {teacher_ND.shape[1]}; comparing "
            f"them needs equal widths. Map the student's to {teacher_ND.shape[1]} with a learned projection, "
            "or use a term that needs no equal widths, as logit_kl is"
        )
    student_ND = full_precision(student_ND)
    return student_ND, teacher_ND.detach().to(student_ND.dtype)
