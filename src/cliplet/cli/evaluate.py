"""The verb that measures a model: evaluate."""

# No `from __future__ import annotations` here, for the same reason as in the package's other verbs.

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cliplet.cli.options import LEAST_RESAMPLES, parse, refuse_below
from cliplet.errors import ConfigError

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
        """Also the mean over so many parts of the pictures, each searched alone; by itself, 5 on COCO's 5k. 0: none."""
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

    if options.save_embeddings and options.save_embeddings.suffix.lower() != ".npz":
        raise ConfigError(f"{options.save_embeddings}: embeddings go into a file that ends in .npz")
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
    for note in filter(None, (result.benchmark.note, *result.notes)):
        print(note, file=sys.stderr)
    if options.json:
        print(result.to_json())
    else:
        _show(result, options, quarantine.summary())


def _show(result: "EvaluationResult", options: Any, left_out: str) -> None:
    from rich import print as show

    from cliplet.console import counted, recall_table
    from cliplet.evaluation.compare import short_names
    from cliplet.results import DIRECTIONS

    title = f"{result.model} on {result.data}, split {result.split}"
    names = short_names(result.model, *(row.model for row in result.baselines))[1:]
    others = dict(zip(names, result.baselines, strict=True))
    show(recall_table(result.metrics, title, result.intervals, others))
    guessed = " and ".join(f"{result.chance[f'{direction}_R@1']:.2g} {name}" for direction, name in DIRECTIONS.items())
    print(f"Guessing would give an R@1 of {guessed}.")
    if result.folds:
        folded = f"mean of {result.folds.count} parts of {counted(result.folds.images_each, 'picture')}"
        parts = {name: row.folds for name, row in others.items() if row.folds}
        show(recall_table(result.folds.metrics, folded, {}, parts))
    if left_out:
        print(left_out)
    for what, file in (("report", options.report), ("embeddings", options.save_embeddings)):
        if file:
            print(f"{what}: {file}")
