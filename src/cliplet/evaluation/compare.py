"""Two models on the same pictures: differences that the data can show, and the queries that tell them apart.

N pictures, M captions, D width, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cliplet.console import counted
from cliplet.evaluation.intervals import Difference, paired_bootstrap
from cliplet.evaluation.measure import Evaluation, common, many_lost, too_few
from cliplet.evaluation.retrieval import KS, metrics_of_ranks
from cliplet.results import DIRECTIONS, Metrics, Result

CLEAR = 0.05  # p of a difference that is called one
MEASURES = {"median_rank": "median rank", "mean_rank": "mean rank", "mrr": "MRR"}
SEVERAL = (
    "Each p is of one metric alone: of twenty that are looked at, one is below 0.05 by chance. Decide before which "
    "counts."
)


class ComparisonResult(Result):
    """Of `cliplet compare`."""

    format: str = "cliplet-comparison"
    """What this object is."""
    a: str
    """The first model, as it was named."""
    b: str
    """The second."""
    data: str
    """As it was named."""
    split: str
    """What was measured on."""
    images: int
    """Pictures that both were measured on."""
    captions: int
    """Captions of these."""
    left_out: int
    """Pictures of the split that one of the two, or both, could not read."""
    notes: list[str]
    """What one should know to judge the figures."""
    resamples: int
    """Of the bootstrap."""
    seed: int
    """Of the bootstrap."""
    metrics_a: Metrics
    """image_to_text_R@k and text_to_image_R@k in percent; _median_rank, _mean_rank, _mrr; rsum; images; captions."""
    metrics_b: Metrics
    """The same of B."""
    differences: dict[str, Difference]
    """By metric: a, b, difference (b - a), low and high (ends of its 95 % interval), p (two-sided)."""


@dataclass(frozen=True)
class Query:
    """A query that one of the two answers better."""

    direction: str  # image_to_text or text_to_image
    row: int  # of the picture or the caption that asks
    rank_a: int
    rank_b: int

    @property
    def better(self) -> str:
        """A or B."""
        return "A" if self.rank_a < self.rank_b else "B"


@dataclass(frozen=True)
class Comparison:
    """Two models, measured on the same pictures in the same order."""

    evaluation_a: Evaluation
    evaluation_b: Evaluation
    unshared: int  # pictures that only one of the two could read
    ks: tuple[int, ...]
    resamples: int
    seed: int
    differences: dict[str, Difference]  # by metric, as of `metrics_of_ranks`

    def most_different(self, k: int = 8) -> list[Query]:
        """Of each direction the k queries that A answers better than B by most, then the k that B does; fewer, where
        they are not so many.

        By the difference of reciprocal ranks: it weighs what a person sees, the first answers. A right answer that is
        first here and hundredth there comes before one that is tenth here and last there. Ties keep the data's order.
        """
        found = []
        for direction, rank_a_Q, rank_b_Q in self._ranks():
            gain_Q = 1.0 / rank_b_Q - 1.0 / rank_a_Q
            for gain in (-gain_Q, gain_Q):
                rows = [row for row in np.argsort(-gain, kind="stable")[:k] if gain[row] > 0]
                found += [Query(direction, int(row), int(rank_a_Q[row]), int(rank_b_Q[row])) for row in rows]
        return found

    def wins(self) -> dict[str, tuple[int, int, int]]:
        """Of each direction how many queries A ranks better, how many both rank alike, how many B ranks better."""
        return {
            direction: (int((a < b).sum()), int((a == b).sum()), int((a > b).sum()))
            for direction, a, b in self._ranks()
        }

    def verdict(self) -> list[str]:
        """`verdict` of the differences."""
        return verdict(self.differences, len(self.evaluation_a.records))

    def result(self, a: str, b: str, data: str, split: str, pictures: int) -> ComparisonResult:
        """As it is printed with --json. `pictures`: of the whole split."""
        images, captions = len(self.evaluation_a.records), len(self.evaluation_a.captions)
        counts = {"images": images, "captions": captions}
        metrics_a, metrics_b = (
            {**metrics_of_ranks(one.image_rank_N, one.text_rank_M, self.ks), **counts}
            for one in (self.evaluation_a, self.evaluation_b)
        )
        return ComparisonResult(
            a=a,
            b=b,
            data=data,
            split=split,
            **counts,
            left_out=pictures - images,
            notes=too_few(images) + many_lost(images, pictures - images),
            resamples=self.resamples,
            seed=self.seed,
            metrics_a=metrics_a,
            metrics_b=metrics_b,
            differences=self.differences,
        )

    def _ranks(self) -> list[tuple[str, np.ndarray, np.ndarray]]:
        a, b = self.evaluation_a, self.evaluation_b
        return [
            ("text_to_image", a.text_rank_M, b.text_rank_M),
            ("image_to_text", a.image_rank_N, b.image_rank_N),
        ]


def compare(
    evaluation_a: Evaluation,
    evaluation_b: Evaluation,
    ks: Sequence[int] = KS,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Both measured on the pictures and captions that they have in common, and the differences between them.

    Pictures that only one of them could read are left out, and ranks counted anew without them. Intervals and p are
    those of `paired_bootstrap`: pictures are drawn anew, the same ones for both. A p is of one metric alone, so of many
    metrics that are looked at, some are below 0.05 by chance. Raises DataError where they have no picture in common.
    """
    measured = len(evaluation_a.records) + len(evaluation_b.records)
    evaluation_a, evaluation_b = common([evaluation_a, evaluation_b])
    unshared = measured - 2 * len(evaluation_a.records)
    ranks_a = evaluation_a.image_rank_N, evaluation_a.text_rank_M
    ranks_b = evaluation_b.image_rank_N, evaluation_b.text_rank_M
    differences = paired_bootstrap(ranks_a, ranks_b, evaluation_a.caption_image_M, ks, resamples, seed)
    return Comparison(evaluation_a, evaluation_b, unshared, tuple(ks), resamples, seed, differences)


def verdict(differences: Mapping[str, Difference], images: int) -> list[str]:
    """Plain English on the recalls: a line for each that differs, or one that none does. `images`: pictures that were
    measured."""
    recalls = {name: one for name, one in differences.items() if "_R@" in name}
    clear = [name for name, one in recalls.items() if is_clear(one)]
    lines = [_difference_line(name, recalls[name]) for name in clear]
    rest = [name for name in recalls if name not in clear]
    if rest and all(recalls[name].difference == recalls[name].low == recalls[name].high == 0 for name in recalls):
        lines.append("No difference at all: every recall is the same.")
    elif rest:
        unclear = ", ".join(
            f"{metric_name(name)} ({recalls[name].low:+.1f} to {recalls[name].high:+.1f})" for name in rest
        )
        lines.append(f"No difference that {counted(images, 'picture')} could show, B − A being within: {unclear}.")
    return lines + too_few(images)


def _difference_line(name: str, one: Difference) -> str:
    better, sign = ("B", 1) if one.difference > 0 else ("A", -1)
    low, high = sorted((sign * one.low, sign * one.high))
    points = f"{abs(one.difference):.1f} points ({low:.1f} to {high:.1f}), p {p_text(one.p)}"
    return f"{metric_name(name)}: {better} is better by {points}"


def is_clear(one: Difference) -> bool:
    """Whether a difference is one that chance would seldom make."""
    return one.p < CLEAR and not one.low <= 0 <= one.high


def metric_name(name: str) -> str:
    """`image→text R@1` for `image_to_text_R@1`."""
    for direction, arrow in DIRECTIONS.items():
        if name.startswith(direction):
            measure = name.removeprefix(f"{direction}_")
            return f"{arrow} {MEASURES.get(measure, measure)}"
    return name


def p_text(p: float) -> str:
    """A p with as many digits as it has to say."""
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.2f}" if p >= 0.1 else f"{p:.3f}" if p >= 0.01 else f"{p:.1g}"


def difference_cells(name: str, one: Difference) -> tuple[str, str, str, str, str, str]:
    """A row of a table for people: metric, A, B, difference, 95 % interval, p."""
    digits = 3 if name.endswith("_mrr") else 1
    a, b = (f"{value:,.{digits}f}" for value in (one.a, one.b))
    difference, low, high = (f"{value:+,.{digits}f}" for value in (one.difference, one.low, one.high))
    return metric_name(name), a, b, difference, f"{low} to {high}", p_text(one.p)


def short_names(*names: str) -> tuple[str, ...]:
    """The last parts of models' names, as many as tell them apart, without the `model` that every run's folder has. The
    same name twice stays the same."""
    paths = [Path(name.removeprefix("open_clip:")) for name in names]
    parents = [path.parent if path.name == "model" and path.parent.name else path for path in paths]
    different = len(set(names))
    parts = [path.parts for path in (parents if len(set(parents)) == different else paths)]
    for count in range(1, max(map(len, parts)) + 1):
        short = tuple("/".join(some[-count:]) for some in parts)
        if len(set(short)) == different:
            return short
    return names
