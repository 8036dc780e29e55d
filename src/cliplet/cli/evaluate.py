"""The verb that measures a model: evaluate."""

# No `from __future__ import annotations` here, for the same reason as in the package's other verbs.

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated

from cliplet.cli.options import parse
from cliplet.errors import DataError


def evaluate(words: list[str]) -> None:
    """Measure a model on a data set: recall both ways by Karpathy's protocol, with intervals, beside baselines."""
    import tyro

    @dataclasses.dataclass
    class Options:
        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
        """Model or run folder, open_clip:ARCHITECTURE/PRETRAINED, or a file of stored embeddings (.npz)."""
        data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
        """Annotation file, data-set folder, tars or Hugging Face data set."""
        split: str = "test"
        """Split to measure on; all takes every picture."""
        images: Path | None = None
        """Folder of the pictures, where it cannot be found from the annotation file."""
        samples: int | None = None
        """Read the first so many pictures of each split only."""
        baseline: tuple[str, ...] = ()
        """Other models to measure on the same pictures, each named as MODEL is."""
        benchmark: str = ""
        """Benchmark that this must be: coco-5k, flickr30k-1k or flickr8k-1k. Anything else is then an error."""
        folds: int | None = None
        """Also the mean over so many parts of the pictures, each searched alone; by itself, 5 on COCO's 5k."""
        resamples: int = 1000
        """Of the bootstrap that gives 95 % intervals; 0: no intervals."""
        seed: int = 0
        """Of the bootstrap."""
        report: Path | None = None
        """Write a page with pictures: one HTML file that needs nothing else."""
        save_embeddings: Path | None = None
        """Write the features to this .npz file, which can stand in the place of MODEL later."""
        json: bool = False
        """Print JSON instead of a table (docs/json.md)."""
        quarantine: Path = Path("quarantine.jsonl")
        """Where pictures and captions that had to be left out are written down, if there are any, as JSON lines."""

    options: Options = parse(Options, "evaluate", words, evaluate.__doc__ or "")

    from rich import print as show

    from cliplet.console import progress_bar, recall_table
    from cliplet.data.quarantine import Quarantine
    from cliplet.data.readers import read_source
    from cliplet.evaluation.embeddings import measured, save_embeddings
    from cliplet.evaluation.known_splits import check, named
    from cliplet.evaluation.protocol import COCO_FOLDS, EvaluationResult, benchmark, common, measurement
    from cliplet.evaluation.report import report_evaluation
    from cliplet.evaluation.statistics import feature_statistics
    from cliplet.files import refuse_unwritable

    for file in filter(None, (options.report, options.save_embeddings)):
        refuse_unwritable(file)
    source = read_source(options.data, options.images, options.samples)
    records = source.select(options.split)
    checked = check(options.data, options.split, records, named(options.benchmark) if options.benchmark else None)
    if options.benchmark and not checked.is_it:
        raise DataError(f"{options.data}, split {options.split}: is not {options.benchmark}", checked.note)
    if checked.note:
        print(checked.note, file=sys.stderr)
    quarantine = Quarantine(options.quarantine)
    quarantine.extend(source.problems)
    models = [options.model, *options.baseline]
    evaluations = []
    for model in models:
        with progress_bar(f"embedding with {model}" if len(models) > 1 else "embedding") as progress:
            evaluations.append(measured(model, records, quarantine, progress))
    evaluations = common(evaluations)
    folds = options.folds if options.folds is not None else COCO_FOLDS.get(checked.name, 0)
    rows = [
        measurement(model, one, resamples=options.resamples, seed=options.seed, folds=folds)
        for model, one in zip(models, evaluations, strict=True)
    ]
    own, evaluation = rows[0], evaluations[0]
    statistics = feature_statistics(evaluation.image_ND, evaluation.text_MD, evaluation.caption_image_M)
    result = EvaluationResult(
        model=options.model,
        data=options.data,
        split=options.split,
        left_out=len(quarantine),
        problems=quarantine.entries(),
        **own.model_dump(exclude={"model"}),
        resamples=options.resamples,
        seed=options.seed,
        benchmark=benchmark(checked),
        statistics=statistics,
        logit_scale=evaluation.logit_scale,
        baselines=rows[1:],
    )
    if options.save_embeddings:
        facts = {"model": options.model, "data": options.data, "split": options.split}
        save_embeddings(options.save_embeddings, evaluation, facts, records)
    if options.report:
        report_evaluation(options.report, result, evaluation, "cliplet evaluate " + shlex.join(words))
    if options.json:
        print(result.to_json())
        return
    title = f"{options.model} on {options.data}, split {options.split}"
    show(recall_table(own.metrics, title, own.intervals, {row.model: row for row in rows[1:]}))
    if own.folds:
        folded = f"mean of {own.folds.count} folds of {own.folds.images_each:,} pictures"
        others = {row.model: row.folds for row in rows[1:] if row.folds}
        show(recall_table(own.folds.metrics, folded, {}, others))
    if quarantine:
        print(quarantine.summary())
    for what, written in (("report", options.report), ("embeddings", options.save_embeddings)):
        if written:
            print(f"{what}: {written}")
