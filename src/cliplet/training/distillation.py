"""What a student keeps beside itself while it learns from teachers, and what it asks of them. The losses themselves are
in `losses/distillation.py`; teachers that run are in `teachers.py`, stored ones in `data/teacher_store.py`.

Shapes: B pictures and C captions of all ranks, D the student's width, T a teacher's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from cliplet.config import DistilConfig, LossConfig, RunConfig
from cliplet.data.teacher_store import TeacherInfo
from cliplet.errors import TrainingError
from cliplet.losses.distillation import TeacherFeatures
from cliplet.models.dual_encoder import Output
from cliplet.training.objective import NAME_A_TEACHER, TAUGHT_TERMS, Lesson, loss_in_stage, weights_of


class Distillation(nn.Module):
    """Turns teachers' features of a batch into a Lesson.

    For the feature term, a student's features are mapped to the space of a teacher of another width, or of each of
    several: linearly, by weights that train with the student and belong to the run, not to the model. Without a map, a
    mean of distances from several teachers would be the distance from the mean of their vectors, which means nothing.
    Pictures and captions share a map, for they share a space.
    """

    def __init__(self, config: DistilConfig, teachers: Sequence[TeacherInfo], embed_dim: int):
        super().__init__()
        self.config, self.teachers = config, tuple(teachers)
        self.projections = nn.ModuleList(
            [
                nn.Identity()
                if one.embed_dim == embed_dim and len(teachers) == 1
                else nn.Linear(embed_dim, one.embed_dim, bias=False)
                for one in teachers
            ]
        )

    def lesson(self, output: Output, features: Sequence[tuple[torch.Tensor, torch.Tensor]], loss: LossConfig) -> Lesson:
        """What the teachers' features, (B, T) and (C, T) of each, say of the student's output."""
        # A scale that is not known is not asked for: `refuse_bad_lessons`.
        scales = [self.config.teacher_scale or one.logit_scale or 1.0 for one in self.teachers]
        teachers = [TeacherFeatures(*pair, scale) for pair, scale in zip(features, scales, strict=True)]
        projected = []
        if loss.feature > 0:
            with torch.autocast(output.image_features.device.type, enabled=False):
                projected = [self._projected(projection, output) for projection in self.projections]
        return Lesson(teachers, projected, self.config.affinity_scale, self.config.train_temperature)

    @staticmethod
    def _projected(projection: nn.Module, output: Output) -> tuple[torch.Tensor, torch.Tensor]:
        """The student's features in a teacher's width, of unit length."""
        if isinstance(projection, nn.Identity):
            return output.image_features, output.text_features
        return F.normalize(projection(output.image_features), dim=-1), F.normalize(
            projection(output.text_features), dim=-1
        )


def taught_terms(config: RunConfig) -> set[str]:
    """Names of the teachers' terms that have a weight in some stage."""
    stages = config.train.stages
    return set().union(*(TAUGHT_TERMS.keys() & weights_of(loss_in_stage(config, stage)).keys() for stage in stages))


def refuse_bad_lessons(config: RunConfig, teachers: Sequence[TeacherInfo] = ()) -> None:
    """Raises TrainingError for terms without a teacher, for teachers without a term, and for terms that ask of these
    `teachers` what they cannot say."""
    asked = taught_terms(config)
    if asked and not config.distil.active:
        raise TrainingError(
            f"the loss weighs {', '.join(f'loss.{name}' for name in TAUGHT_TERMS if name in asked)}, but there is no "
            "teacher",
            NAME_A_TEACHER,
        )
    if config.distil.active and not asked:
        raise TrainingError(
            "there is a teacher, but the loss gives no weight to anything that it teaches",
            f"Set one of {', '.join(f'--loss.{name}' for name in TAUGHT_TERMS)}, or --distil.enabled False.",
        )
    width = config.model.embed_dim
    others = [one for one in teachers if one.embed_dim != width]
    if "interactive" in asked and others:
        raise TrainingError(
            f"loss.interactive compares the student's features, {width} wide, with those of {others[0].name}, "
            f"{others[0].embed_dim} wide",
            f"Set model.embed_dim to {others[0].embed_dim}, or loss.interactive to 0; the other terms need no equal "
            "widths.",
        )
    own_scale = "logit" in asked and config.distil.teacher_scale is None
    own_scale |= "affinity" in asked and not (config.distil.affinity_scale or config.distil.teacher_scale)
    unknown = [one for one in teachers if one.logit_scale is None]
    if own_scale and unknown:
        raise TrainingError(
            f"{unknown[0].name}: its temperature depends on the batch, so that it has no one scale for its cosines",
            "Name one with --distil.teacher-scale.",
        )
