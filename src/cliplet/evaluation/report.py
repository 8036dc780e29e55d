"""One HTML file that shows an evaluation, or a run, to people: numbers, curves, and queries with what they found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cliplet.charts import Interval, bars_with_intervals, heat_map, histogram
from cliplet.evaluation import gallery as choice
from cliplet.evaluation.curves import training_curves
from cliplet.evaluation.measure import Evaluation
from cliplet.evaluation.protocol import EvaluationResult, Folds
from cliplet.evaluation.retrieval import KS
from cliplet.evaluation.statistics import MEANINGS, chance_metrics, feature_statistics
from cliplet.page import (
    Section,
    bullet_list,
    embedded,
    facts_table,
    folded,
    gallery,
    name_of,
    number,
    paragraph,
    table,
    write_page,
)
from cliplet.results import DIRECTIONS

TEXT_QUERIES, PICTURE_QUERIES, CASES, PAIRS = 8, 6, 3, 12  # shown
PAIR_SIDE = 96  # pixels of a thumbnail above the matrix
RANK_BOUNDS = (1, 5, 10, 50, 100, 500, 1000, 5000, 10_000)
WARNINGS = 10
RANK_NAMES = {"mrr": "MRR", "median_rank": "median rank", "mean_rank": "mean rank"}
THIS, GUESSING = "this model", "guessing"

Intervals = Mapping[str, tuple[float, float]]


def write_report(
    file: Path,
    evaluation: Evaluation,
    *,
    title: str,
    facts: Mapping[str, str],
    history: Sequence[Mapping[str, Any]] = (),
    chance: float | None = None,
    intervals: Intervals | None = None,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
    baseline_intervals: Mapping[str, Intervals] | None = None,
    config_text: str = "",
    notes: Sequence[str] = (),
) -> None:
    """Writes the page beside its place and renames it.

    `history`: the lines of the run's log; without any, no curves. `chance`: the loss of a model that knows nothing,
    drawn as a level line. `intervals`: as of `bootstrap_intervals`. `baselines`: metrics of others on the same
    pictures by their name, as of `retrieval_metrics`; what is absent shows as a dash. `baseline_intervals`: theirs,
    where there are any. `notes`: on the split and the protocol. A picture that cannot be read leaves its reason in
    its place. Raises OSError where the file cannot be written.
    """
    warnings = [str(line.get("message", "")) for line in history if line.get("kind") == "warning"]
    configuration = f"<pre>{escape(config_text)}</pre>\n" if config_text else ""
    rows: dict[str, tuple[Mapping[str, float], Intervals]] = {THIS: (evaluation.metrics, intervals or {})}
    rows |= {name: (theirs, (baseline_intervals or {}).get(name, {})) for name, theirs in (baselines or {}).items()}
    sections = [
        Section("Retrieval", _retrieval(evaluation, rows, notes), "retrieval"),
        Section("Training", training_curves(history, chance), "training"),
        Section("Where the right answer came", _rank_charts(evaluation), "ranks"),
        Section("Text queries", _text_queries(evaluation), "texts"),
        Section("Picture queries", _picture_queries(evaluation), "pictures"),
        Section("Surest and worst", _cases(evaluation), "cases"),
        Section("Every text with every picture", _similarity(evaluation), "similarity"),
        Section("Features", _features(evaluation), "features"),
        Section("Warnings", bullet_list(warnings[:WARNINGS]), "warnings"),
        Section("Facts", facts_table(facts), "facts"),
        Section("Configuration", configuration and folded("The whole configuration, as YAML", configuration), "config"),
    ]
    links = " ".join(f'<a href="#{one.anchor}">{escape(one.heading)}</a>' for one in sections if one.content)
    write_page(Path(file), title, sections, f"{_summary(evaluation.metrics)}<nav>{links}</nav>\n")


def _summary(metrics: Mapping[str, float]) -> str:
    """The result in two sentences."""
    image, text = (number(metrics.get(f"{direction}_R@1")) for direction in DIRECTIONS)
    pictures, captions = (metrics.get(name, 0) for name in ("images", "captions"))
    return paragraph(
        f"Among {pictures:,.0f} pictures, {text}% of the captions find their own picture first. Among {captions:,.0f} "
        f"captions, {image}% of the pictures find one of their own first."
    )


def report_evaluation(file: Path, result: EvaluationResult, evaluation: Evaluation, command: str = "") -> None:
    """Writes the page of a `cliplet evaluate`: as `write_report`, from what it reports. `evaluation`: of the model."""
    notes = [note for note in (result.benchmark.note, *result.notes) if note]
    if result.folds:
        notes.append(_folds_words(result.folds))
    if result.left_out:
        notes.append(f"Left out, for they could not be used: {result.left_out:,} records, captions or pictures.")
    write_report(
        file,
        evaluation,
        title=f"{result.model} on {result.data}, {result.split}",
        facts={
            "model": result.model,
            "data": f"{result.data}, split {result.split}",
            "pictures": f"{len(evaluation.records):,}, with {len(evaluation.captions):,} captions",
            "known split": result.benchmark.name or "none",
            "intervals": f"bootstrap, {result.resamples:,} resamples, seed {result.seed}"
            if result.resamples
            else "none",
            "command": command or "cliplet.evaluation",
        },
        intervals=result.intervals,
        baselines={one.model: one.metrics for one in result.baselines},
        baseline_intervals={one.model: one.intervals for one in result.baselines},
        notes=notes,
    )


def _folds_words(folds: Folds) -> str:
    recalls = (
        f"{name} " + ", ".join(f"R@{k} {number(folds.metrics.get(f'{direction}_R@{k}'))}" for k in KS)
        for direction, name in DIRECTIONS.items()
    )
    return f"Mean of {folds.count} folds of {folds.images_each:,} pictures: {'; '.join(recalls)}."


def _retrieval(
    evaluation: Evaluation, rows: Mapping[str, tuple[Mapping[str, float], Intervals]], notes: Sequence[str]
) -> str:
    """Tables of both directions. `rows`: metrics and intervals of each model by its name, this one first."""
    guessed = chance_metrics(evaluation.caption_image_M)
    parts = []
    for direction, name in DIRECTIONS.items():
        names = [f"{direction}_R@{k}" for k in KS] + [f"{direction}_{rank}" for rank in RANK_NAMES]
        columns = ["", *(f"R@{k}" for k in KS), *RANK_NAMES.values()]
        cells = [_row(model, metrics, names, intervals) for model, (metrics, intervals) in rows.items()]
        cells.append(_row(GUESSING, guessed, names, {}))
        parts.append(f"<h3>{name}</h3>\n{table(columns, cells, 'numbers recall')}")
        if len(rows) > 1:
            first = f"{direction}_R@1"
            bars = [
                Interval(model, one.get(first, math.nan), *ends.get(first, ())) for model, (one, ends) in rows.items()
            ]
            parts.append(bars_with_intervals(bars, f"{name}, R@1", unit="%"))
    words = [
        "R@k: percent of queries whose right answer is among the first k. MRR: mean of 1 / rank. All captions of a "
        "picture are right answers to it, and the first of them counts. Equal scores count against the model."
    ]
    metrics, intervals = rows[THIS]
    if intervals:
        words.append("Small below a figure: its 95% interval, from drawing the pictures anew.")
    if "rsum" in metrics:
        low_high = f" ({_interval(intervals['rsum'])})" if "rsum" in intervals else ""
        words.append(f"Sum of the six recalls: {number(metrics['rsum'])}{low_high}.")
    return "".join(parts) + paragraph(" ".join(words)) + bullet_list(notes)


def _row(name: str, metrics: Mapping[str, float], names: Sequence[str], intervals: Intervals) -> list[str]:
    cells = [name]
    for metric in names:
        digits = 3 if metric.endswith("_mrr") else 1
        cell = number(metrics.get(metric), digits)
        cells.append(f"{cell}\n{_interval(intervals[metric], digits)}" if metric in intervals else cell)
    return cells


def _interval(ends: tuple[float, float], digits: int = 1) -> str:
    return f"{number(ends[0], digits)}–{number(ends[1], digits)}"


def rank_shares(rank_Q: np.ndarray, answers: int) -> dict[str, float]:
    """Percent of the queries whose right answer came at rank 1, up to rank 5 but not 1, up to 10 but not 5, ... up to
    the bound that holds all `answers`; beyond the last bound all together."""
    shares, below = {}, 0
    for bound in RANK_BOUNDS:
        name = "1" if bound == 1 else f"≤{bound // 1000}k" if bound >= 1000 else f"≤{bound}"
        shares[name] = 100 * float(np.mean((rank_Q > below) & (rank_Q <= bound)))
        below = bound
        if bound >= answers:
            return shares
    shares[f">{below // 1000}k"] = 100 * float(np.mean(rank_Q > below))
    return shares


def _rank_charts(evaluation: Evaluation) -> str:
    shares = {
        "image_to_text": rank_shares(evaluation.image_rank_N, len(evaluation.text_MD)),
        "text_to_image": rank_shares(evaluation.text_rank_M, len(evaluation.image_ND)),
    }
    highest = max(max(share.values()) for share in shares.values())
    charts = "".join(
        histogram(share, f"{DIRECTIONS[key]}, share of queries", "rank of the right answer", unit="%", highest=highest)
        for key, share in shares.items()
    )
    words = "Each bar begins where the one before it ends: ≤10 holds ranks 6 to 10. A good model stands on the left."
    return f'<div class="charts">{charts}</div>\n{paragraph(words)}'


def _text_queries(evaluation: Evaluation) -> str:
    rows = choice.evenly(len(evaluation.captions), TEXT_QUERIES)
    words = f"{_every(rows, 'caption')} with the pictures it found first, and their cosines. Not picked by hand."
    return paragraph(words) + gallery([choice.text_query(evaluation, row) for row in rows])


def _picture_queries(evaluation: Evaluation) -> str:
    rows = choice.evenly(len(evaluation.records), PICTURE_QUERIES)
    words = f"{_every(rows, 'picture')} with the captions it found first, and their cosines. Not picked by hand."
    return paragraph(words) + gallery([choice.picture_query(evaluation, row) for row in rows])


def _every(rows: range, what: str) -> str:
    return f"Every {what}" if rows.step == 1 else f"One {what} in {rows.step:,}, in the order of the data, each"


def _cases(evaluation: Evaluation) -> str:
    parts = []
    for heading, words, queries in (
        (
            "Captions surest of their picture",
            "Right, and furthest ahead of the next picture.",
            choice.surest_texts(evaluation, CASES),
        ),
        (
            "Captions that miss their picture most",
            "By the rank of their own picture. Often the caption fits the others as well, or is a slip in the data.",
            choice.worst_texts(evaluation, CASES),
        ),
        (
            "Pictures surest of a caption",
            "Right, and furthest ahead of the best caption of another picture.",
            choice.surest_pictures(evaluation, CASES),
        ),
        (
            "Pictures that miss their captions most",
            "By the rank of the first of their own captions.",
            choice.worst_pictures(evaluation, CASES),
        ),
    ):
        if queries:
            parts.append(folded(heading, paragraph(words) + gallery(queries), opened=True))
    return "".join(parts)


def _similarity(evaluation: Evaluation) -> str:
    pictures, captions, cosine_PP = choice.some_pairs(evaluation, PAIRS)
    places = [evaluation.records[row].image for row in pictures]
    chart = heat_map(
        cosine_PP,
        [evaluation.captions[row] for row in captions],
        [name_of(place) for place in places],
        "Cosine",
        same=True,
        column_heads=[embedded(place, name_of(place), PAIR_SIDE) for place in places],
    )
    words = (
        "Some pictures, evenly chosen, and the first caption of each. Framed cells are the pairs that belong together; "
        "each should be the darkest of its row and of its column (in the dark, the brightest)."
    )
    return chart + paragraph(words)


def _features(evaluation: Evaluation) -> str:
    rows, logit_scale = [], evaluation.logit_scale
    if logit_scale is not None:
        factor = math.exp(0.1 * logit_scale)
        meaning = (
            f"What cosines are multiplied by before the softmax; its inverse, {1 / logit_scale:.4f}, is the "
            f"temperature. An answer whose cosine is higher by 0.1 is held to be {factor:,.1f} times as likely."
        )
        rows.append(("logit scale", f"{logit_scale:.2f}", meaning))
    found = feature_statistics(evaluation.image_ND, evaluation.text_MD, evaluation.caption_image_M)
    for key, (name, meaning) in MEANINGS.items():
        digits = 1 if "rank" in key else 3
        rows.append((name, number(found[key], digits), meaning.format(width=evaluation.image_ND.shape[1])))
    return table(("", "value", "what it means"), rows, "meanings")
