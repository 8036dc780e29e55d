"""How a run went, from its log: charts of the loss, the recalls and the temperature, and its speed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from cliplet.charts import Series, binned, line_chart
from cliplet.evaluation.retrieval import DIRECTIONS
from cliplet.page import paragraph


def training_curves(history: Sequence[Mapping[str, Any]], chance: float | None) -> str:
    """The charts and a line about speed; empty where the `history`, a run's log, holds nothing to draw. `chance`: the
    loss of a model that knows nothing, drawn as a level line."""
    training = [line for line in history if line.get("kind") == "train"]
    validation = [line for line in history if line.get("kind") == "validation"]
    loss = binned(_points(training, "step", "loss"))
    recalls = [Series(key.replace("_to_", " → "), _points(validation, "epoch", f"{key}_R@1")) for key in DIRECTIONS]
    scale = binned(_points(training, "step", "logit_scale"))
    charts = [
        line_chart([Series("loss", loss)], "Training loss", "step", level=chance, level_name="chance"),
        line_chart(recalls, "Validation R@1 (%)", "epoch", from_zero=True),
        line_chart([Series("logit scale", scale)], "Logit scale (1 / temperature)", "step"),
    ]
    if not any(charts):
        return ""
    return f'<div class="charts">{"".join(charts)}</div>\n{_speed(training)}'


def _points(lines: Iterable[Mapping[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    """The finite values of y over x, in order. Of a step that a resumed run did again, the last value counts."""
    found: dict[float, float] = {}
    for line in lines:
        pair = (line.get(x), line.get(y))
        if all(isinstance(value, (int, float)) and math.isfinite(value) for value in pair):
            found[float(line[x])] = float(line[y])
    return sorted(found.items())


def _speed(training: Sequence[Mapping[str, Any]]) -> str:
    speeds = [value for _, value in _points(training, "step", "images_per_second")]
    waits = [value for _, value in _points(training, "step", "data_wait")]
    words = [f"Median speed: {median(speeds):,.0f} pictures a second." if speeds else ""]
    words.append(f"Median share of time spent waiting for pictures: {median(waits):.0%}." if waits else "")
    return paragraph(" ".join(filter(None, words))) if any(words) else ""
