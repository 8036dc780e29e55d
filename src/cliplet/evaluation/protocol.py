"""What an evaluation reports: metrics with their intervals, folds, the benchmark that it is, baselines beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from cliplet.console import counted
from cliplet.data.quarantine import Quarantine
from cliplet.data.records import ImageText
from cliplet.errors import DataError
from cliplet.evaluation.intervals import bootstrap_intervals
from cliplet.evaluation.known_splits import KNOWN_SPLITS
from cliplet.evaluation.measure import Evaluation, common, many_lost, too_few
from cliplet.evaluation.retrieval import KS, clip_benchmark_names, fold_metrics, mean_metrics
from cliplet.evaluation.sources import measured, refuse_missing
from cliplet.evaluation.split_check import SplitCheck, check, in_order, named
from cliplet.evaluation.statistics import chance_metrics, feature_statistics
from cliplet.results import Metrics, Result, Strict
from cliplet.runtime.encoder import Progress

COCO_FOLDS = {"coco-5k": 5}  # the field reports this split's five folds of 1,000 as well
OTHER_ORDER = (
    "They stand in another order than Karpathy's, so that folds of 1,000 would not be the field's; none are given."
)
KNOWN = {split.name: split for split in KNOWN_SPLITS}


class Folds(Strict):
    """Metrics of equal parts of the pictures, each searched alone."""

    count: int
    """Parts, of neighbouring pictures in the data set's order."""
    images_each: int
    """Pictures of each; what is left over is in none."""
    metrics: Metrics
    """The mean over the parts."""


class Benchmark(Strict):
    """Whether the pictures are those of a benchmark that the field knows."""

    name: str
    """coco-5k, flickr30k-1k, flickr8k-1k, or another split that is known; empty: none of them."""
    claimed: str
    """What the data set calls itself, by its names or by --benchmark; empty: nothing known."""
    is_it: bool
    """Whether the pictures are those of the split that is claimed."""
    note: str
    """For people; empty: nothing to say."""


class Measurement(Strict):
    """What was measured of one model."""

    model: str
    """As it was named: a folder, open_clip:ARCHITECTURE/PRETRAINED, a file of embeddings."""
    metrics: Metrics
    """image_to_text_R@k and text_to_image_R@k in percent; _median_rank, _mean_rank, _mrr; rsum; images; captions."""
    intervals: dict[str, tuple[float, float]]
    """Lower and upper end of each metric's 95 % interval, by bootstrap over pictures; empty: not asked for."""
    clip_benchmark: dict[str, float]
    """Recalls as LAION's CLIP_benchmark names them, from 0 to 1: image_retrieval_recall@k is text to image."""
    folds: Folds | None
    """null: not asked for."""


class EvaluationResult(Result):
    """Of `cliplet evaluate`."""

    format: str = "cliplet-evaluation"
    """What this object is."""
    model: str
    """As it was named."""
    data: str
    """As it was named."""
    split: str
    """What was measured on."""
    left_out: int
    """Records, captions and pictures that could not be used."""
    problems: list[dict[str, str]]
    """Each of them: where, and the reason."""
    metrics: Metrics
    """As in Measurement."""
    intervals: dict[str, tuple[float, float]]
    """As in Measurement."""
    resamples: int
    """Of the bootstrap; 0: no intervals."""
    seed: int
    """Of the bootstrap."""
    clip_benchmark: dict[str, float]
    """As in Measurement."""
    folds: Folds | None
    """As in Measurement."""
    benchmark: Benchmark
    """Which known split it is, if any."""
    chance: dict[str, float]
    """What guessing would give, by metric."""
    notes: list[str]
    """What one should know to judge the figures."""
    statistics: dict[str, float]
    """Of the features: alignment, uniformity, modality gap and others."""
    logit_scale: float | None
    """What the model multiplies cosines by, the inverse of its temperature; null: unknown, or no single number."""
    baselines: list[Measurement]
    """Other models on the same pictures and captions."""


class Evaluated(NamedTuple):
    """What came of it."""

    result: EvaluationResult
    evaluation: Evaluation  # of the first model, on what all models could read
    whole: Evaluation  # of the first model, on all that it could read itself


def evaluated(
    models: Sequence[str],
    records: Sequence[ImageText],
    data: str,
    split: str,
    quarantine: Quarantine,
    *,
    benchmark: str = "",
    resamples: int = 1000,
    seed: int = 0,
    folds: int | None = None,
    progress: Callable[[str], AbstractContextManager[Progress]] = lambda what: nullcontext(_silent),
) -> Evaluated:
    """The first of `models` measured on records, the others beside it as baselines.

    `data`, `split`: where the records are from. `benchmark`: what they must be, by name. `folds`: None for as many as
    the field has on that split. `progress` gives, for what is done, a function to tell progress to. Raises
    ClipletError for a model or file that is no good, and for data that is not the benchmark, or no longer once pictures
    that could not be read are left out.
    """
    asked = named(benchmark) if benchmark else None
    _refuse_another(check(data, split, records, asked), benchmark, data, split)
    for model in models:
        refuse_missing(model)
    evaluations = []
    for model in models:
        with progress(f"embedding with {model}" if len(models) > 1 else "embedding") as tell:
            evaluations.append(measured(model, records, quarantine, tell))
    whole, evaluations = evaluations[0], common(evaluations)
    first = evaluations[0]
    checked = check(data, split, first.records, asked)  # pictures may have been left out
    _refuse_another(checked, benchmark, data, split)
    note, parts = checked.note, folds or 0
    if folds is None and checked.is_it and checked.name in COCO_FOLDS:
        if in_order(KNOWN[checked.name], first.records):
            parts = COCO_FOLDS[checked.name]
        else:
            note = f"{note} {OTHER_ORDER}".strip()
    own, *baselines = (
        measurement(model, one, resamples=resamples, seed=seed, folds=parts)
        for model, one in zip(models, evaluations, strict=True)
    )
    result = EvaluationResult(
        data=data,
        split=split,
        left_out=len(quarantine),
        problems=quarantine.entries(),
        **dict(own),
        resamples=resamples,
        seed=seed,
        benchmark=Benchmark(name=checked.name, claimed=checked.claim, is_it=checked.is_it, note=note),
        chance=chance_metrics(first.caption_image_M),
        notes=_notes(first, len(quarantine)),
        statistics=feature_statistics(first.image_ND, first.text_MD, first.caption_image_M),
        logit_scale=first.logit_scale,
        baselines=baselines,
    )
    return Evaluated(result, first, whole)


def _refuse_another(checked: SplitCheck, benchmark: str, data: str, split: str) -> None:
    if benchmark and not checked.is_it:
        raise DataError(f"{data}, split {split}: is not {benchmark}", checked.note)


def _notes(evaluation: Evaluation, lost: int) -> list[str]:
    images, captions = len(evaluation.records), len(evaluation.captions)
    searched = min(images, captions)
    all_right = [f"R@{k}" for k in KS if k >= searched]
    small = (
        [f"{' and '.join(all_right)} say nothing: only {counted(searched, 'answer')} can be found."]
        if all_right
        else []
    )
    return many_lost(images, lost) + too_few(images) + small


def _silent(done: int, total: int) -> None:
    """Says nothing."""


def measurement(
    model: str,
    evaluation: Evaluation,
    *,
    resamples: int = 1000,
    seed: int = 0,
    folds: int = 0,
) -> Measurement:
    """All that is reported of one model. `resamples` 0: no intervals; `folds` below 2: none.

    Raises DataError where there are fewer pictures than folds.
    """
    one = evaluation
    ranks = one.image_rank_N, one.text_rank_M
    intervals = bootstrap_intervals(*ranks, one.caption_image_M, resamples=resamples, seed=seed) if resamples else {}
    in_folds = None
    if folds > 1:
        every = fold_metrics(one.image_ND, one.text_MD, one.caption_image_M, folds)
        in_folds = Folds(count=folds, images_each=int(every[0]["images"]), metrics=mean_metrics(every))
    return Measurement(
        model=model,
        metrics=one.metrics,
        intervals=intervals,
        clip_benchmark=clip_benchmark_names(one.metrics),
        folds=in_folds,
    )
