"""The verb that measures two models on the same pictures: compare."""

# No `from __future__ import annotations` here, for the same reason as in the package's other verbs.

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cliplet.cli.options import LEAST_RESAMPLES, parse, refuse_below

if TYPE_CHECKING:
    from rich.table import Table

    from cliplet.evaluation.compare import Comparison, ComparisonResult


def compare(words: list[str]) -> None:
    """Measure two models on the same pictures: which is better, by how much, and how sure that is."""
    import tyro

    @dataclasses.dataclass
    class Options:
        a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
        """Model or run folder, open_clip:ARCHITECTURE/PRETRAINED, or stored embeddings (FILE.npz,
        IMAGES.npy+TEXTS.npy)."""
        b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
        """The other one. Differences are B minus A."""
        data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
        """Annotation file, data-set folder, tars or Hugging Face data set."""
        split: str = "test"
        """Split to measure on; all takes every picture."""
        images: Path | None = None
        """Folder of the pictures, where it cannot be found from the annotation file."""
        samples: int | None = None
        """Read the first so many pictures of each split only."""
        resamples: int = 10_000
        """Of the paired bootstrap that gives intervals and p."""
        seed: int = 0
        """Of the bootstrap."""
        report: Path | None = None
        """Write a page with the queries that tell the two apart: one HTML file that needs nothing else."""
        queries: int = 8
        """How many of them the page shows, of each direction and for each side."""
        json: bool = False
        """Print JSON instead of a table (docs/json.md)."""
        quarantine: Path = Path("quarantine.jsonl")
        """Where pictures and captions that had to be left out are written down, if there are any, as JSON lines."""

    options: Options = parse(Options, "compare", words, compare.__doc__ or "")
    refuse_below(
        resamples=(options.resamples, LEAST_RESAMPLES),
        seed=(options.seed, 0),
        queries=(options.queries, 0),
        samples=(options.samples, 1),
    )

    from rich import print as show

    from cliplet.console import progress_bar
    from cliplet.data.quarantine import Quarantine
    from cliplet.data.readers import read_source
    from cliplet.evaluation.compare import compare as compare_evaluations
    from cliplet.evaluation.comparison_page import write_comparison_page
    from cliplet.evaluation.embeddings import is_embeddings
    from cliplet.evaluation.sources import measured, refuse_missing
    from cliplet.evaluation.split_check import check
    from cliplet.files import refuse_unwritable

    for model in (options.a, options.b):
        refuse_missing(model)
    if options.report:
        refuse_unwritable(options.report)
    source = read_source(options.data, options.images, options.samples)
    records = source.select(options.split)
    quarantine = Quarantine(options.quarantine)
    quarantine.extend(source.problems)
    note = check(options.data, options.split, records).note
    if note:
        print(note, file=sys.stderr)
    evaluations = {}
    # One after the other, for two may not fit into memory; files first, which are quickly found to be no good.
    for model in sorted((options.a, options.b), key=is_embeddings, reverse=True):
        if model not in evaluations:
            with progress_bar(f"embedding with {model}") as progress:
                evaluations[model] = measured(model, records, quarantine, progress)
    comparison = compare_evaluations(
        evaluations[options.a], evaluations[options.b], resamples=options.resamples, seed=options.seed
    )
    result = comparison.result(options.a, options.b, options.data, options.split, len(records))
    if options.report:
        command = "cliplet compare " + shlex.join(words)
        write_comparison_page(options.report, comparison, result, command, options.queries)
    if options.json:
        print(result.to_json())
        return
    show(_table(comparison, result))
    _say(comparison, quarantine.summary(), options.report)


def _table(comparison: "Comparison", result: "ComparisonResult") -> "Table":
    from rich.table import Table
    from rich.text import Text

    from cliplet.evaluation.compare import difference_cells, is_clear, short_names

    a, b = short_names(result.a, result.b)
    left_out = f", {result.left_out:,} left out" if result.left_out else ""
    table = Table(title=Text(f"{a} (A) and {b} (B) on {result.data}, split {result.split}"), title_justify="left")
    for heading in ("", "A", "B", "B − A", "95 % interval", "p"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, one in comparison.differences.items():
        table.add_row(*difference_cells(name, one), style="bold" if is_clear(one) else "")
    table.caption = (
        f"{result.images:,} pictures, {result.captions:,} captions{left_out}; paired bootstrap, "
        f"{result.resamples:,} resamples, seed {result.seed}; of ranks the lower is better"
    )
    return table


def _say(comparison: "Comparison", left_out: str, report: Path | None) -> None:
    """The verdict, and where to look."""
    from cliplet.evaluation.compare import SEVERAL

    print("\n".join(comparison.verdict()))
    print(SEVERAL)
    if left_out:
        print(left_out)
    if report:
        print(f"report: {report}")
    else:
        print("--report comparison.html writes a page with the queries that tell the two apart.")
