"""The verb that measures a model: evaluate."""

# No `from __future__ import annotations` here, for the same reason as in the package's other verbs.

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cliplet.cli.options import LEAST_RESAMPLES, parse, refuse_below

if TYPE_CHECKING:
    from cliplet.evaluation.protocol import EvaluationResult


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
        """Of the bootstrap that gives 95 % intervals; 0: none."""
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

    refuse_below(
        resamples=(options.resamples or LEAST_RESAMPLES, LEAST_RESAMPLES),
        seed=(options.seed, 0),
        folds=(options.folds or 2, 2),
        samples=(options.samples, 1),
    )

    from cliplet.console import progress_bar
    from cliplet.data.quarantine import Quarantine
    from cliplet.data.readers import read_source
    from cliplet.evaluation.embeddings import save_embeddings
    from cliplet.evaluation.protocol import evaluated
    from cliplet.evaluation.report import report_evaluation
    from cliplet.files import refuse_unwritable

    for file in filter(None, (options.report, options.save_embeddings)):
        refuse_unwritable(file)
    source = read_source(options.data, options.images, options.samples)
    records = source.select(options.split)
    quarantine = Quarantine(options.quarantine)
    quarantine.extend(source.problems)
    result, evaluation, whole = evaluated(
        (options.model, *options.baseline),
        records,
        options.data,
        options.split,
        quarantine,
        benchmark=options.benchmark,
        resamples=options.resamples,
        seed=options.seed,
        folds=options.folds,
        progress=progress_bar,
    )
    if options.save_embeddings:
        facts = {"model": options.model, "data": options.data, "split": options.split}
        save_embeddings(options.save_embeddings, whole, facts, records)
    if options.report:
        report_evaluation(options.report, result, evaluation, "cliplet evaluate " + shlex.join(words))
    if result.benchmark.note:
        print(result.benchmark.note, file=sys.stderr)
    if options.json:
        print(result.to_json())
    else:
        _show(result, options, quarantine.summary())


def _show(result: "EvaluationResult", options: Any, left_out: str) -> None:
    from rich import print as show

    from cliplet.console import recall_table

    title = f"{result.model} on {result.data}, split {result.split}"
    show(recall_table(result.metrics, title, result.intervals, {row.model: row for row in result.baselines}))
    if result.folds:
        folded = f"mean of {result.folds.count} folds of {result.folds.images_each:,} pictures"
        others = {row.model: row.folds for row in result.baselines if row.folds}
        show(recall_table(result.folds.metrics, folded, {}, others))
    if left_out:
        print(left_out)
    for what, file in (("report", options.report), ("embeddings", options.save_embeddings)):
        if file:
            print(f"{what}: {file}")
