"""docs/json.md, made from the results' own fields: `python tests/json_docs.py > docs/json.md`."""

from __future__ import annotations

import types
import typing

from cliplet.evaluation.class_scores import Figure
from cliplet.evaluation.compare import ComparisonResult
from cliplet.evaluation.few_shot import FewShot, FewShotRow
from cliplet.evaluation.intervals import Difference
from cliplet.evaluation.protocol import Benchmark, EvaluationResult, Folds, Measurement
from cliplet.evaluation.show import RankedCaption, ShowResult
from cliplet.evaluation.zero_shot import ClassResult, ZeroShot
from cliplet.results import (
    CaptionsResult,
    DemoSummary,
    DuplicatesResult,
    EmbedSummary,
    FoundCaption,
    FoundPicture,
    IndexSummary,
    ModelSummary,
    PackSummary,
    PushSummary,
    Result,
    SearchResult,
    StoreSummary,
    Strict,
    TrainingSummary,
)
from cliplet.runtime.exported import Export, Graph, Step

COMMANDS: dict[str, list[type[Strict]]] = {
    "cliplet evaluate": [EvaluationResult, Folds, Benchmark, Measurement],
    "cliplet compare": [ComparisonResult, Difference],
    "cliplet zero-shot": [ZeroShot, Figure, ClassResult],
    "cliplet few-shot": [FewShot, FewShotRow],
    "cliplet show": [ShowResult, RankedCaption],
    "cliplet embed": [EmbedSummary],
    "cliplet index": [IndexSummary],
    "cliplet search": [SearchResult, FoundPicture, CaptionsResult, FoundCaption],
    "cliplet duplicates": [DuplicatesResult],
    "cliplet train": [TrainingSummary],
    "cliplet demo": [DemoSummary],
    "cliplet import, cliplet interpolate": [ModelSummary],
    "cliplet export": [Export, Graph, Step],
    "cliplet push": [PushSummary],
    "cliplet pack": [PackSummary],
    "cliplet distil-store": [StoreSummary],
}
HEAD = """# JSON

Every command but `cliplet serve` takes `--json`. It then prints one JSON object on standard output and nothing else
there; progress, notes and warnings go to standard error, and the exit status is 0 only where the object is whole.

Each object says its `format` and `format_version` (but a recipe's configuration, which is one by itself). Under one
version no field is renamed, removed or given another meaning; new ones may be added, so read by name and pass over
what you do not know. Numbers that are not finite are `null`. Recalls are percentages, ranks begin at 1.

| metric | |
|---|---|
| `image_to_text_R@1`, `_R@5`, `_R@10` | percent of pictures with one of their own captions among the first k |
| `text_to_image_R@1`, `_R@5`, `_R@10` | percent of captions with their own picture among the first k |
| `image_to_text_median_rank`, `_mean_rank`, `_mrr` | of a picture's best own caption; `mrr` is the mean of 1 / rank |
| `text_to_image_median_rank`, `_mean_rank`, `_mrr` | of a caption's own picture |
| `rsum` | the sum of the six recalls, 600 at best |
| `images`, `captions` | how many were measured |
"""
TAIL = """
## `cliplet inspect`, `cliplet recipes`

`cliplet inspect DATA --json` has `format` cliplet-inspection: counts, lists of what is wrong, spreads of sizes and
words; [data](data.md#inspecting) says what they mean. `cliplet inspect MODEL --json` has `format`
cliplet-model-folder: `model` (the configuration), `parameters`, `bytes` of weights, and `metrics` (`data`, `split`,
`epoch`, and under `retrieval` the metrics above). `cliplet recipes --json` has `format` cliplet-recipes and
`recipes`, a list of `name`, `parameters_M` (millions), `image_size`, `context_length`, `embed_dim`, `shows` and
`published`; `cliplet recipes NAME --json` is the configuration itself, which is what a YAML file of it holds.
"""


def markdown() -> str:
    parts = [HEAD]
    for command, models in COMMANDS.items():
        parts.append(f"\n## {' and '.join(f'`{one}`' for one in command.split(', '))}\n")
        for model in models:
            fields = model.model_fields
            said = f"`format`: {fields['format'].default}" if issubclass(model, Result) else f"**{model.__name__}**"
            parts.append(f"\n{said}\n\n| field | | |\n|---|---|---|\n")
            for name, field in fields.items():
                if name not in ("format", "format_version"):
                    described = " ".join((field.description or "").split()).replace("|", "\\|")
                    parts.append(f"| `{name}` | {type_name(field.annotation)} | {described} |\n")
    return "".join([*parts, TAIL])


def type_name(annotation: typing.Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if set(inner) == {int, float}:
        return "number"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_name(one) for one in inner)
    if origin is typing.Literal:
        return "text"
    if origin is list:
        return f"list of {type_name(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(type_name(one) for one in inner if one is not Ellipsis)}]"
    if origin is dict:
        return f"object of {type_name(inner[1])}"
    names = {str: "text", float: "number", int: "whole number", bool: "true or false", type(None): "null"}
    return names.get(annotation, "any" if annotation is typing.Any else f"{annotation.__name__}")


if __name__ == "__main__":
    print(markdown(), end="")
