"""The README of a model folder: what it is, what it was trained on, how good it is, how to use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cliplet import __version__
from cliplet.card_metadata import metadata, model_index, started_from, with_metadata
from cliplet.config import ImageTowerConfig, ModelConfig, RunConfig, to_yaml
from cliplet.result import DIRECTIONS

USE = 'cliplet.load("this folder")'  # where a pushed model is loaded from is put in its place
CARD = """\

# {name}

A small CLIP: pictures and sentences in one space of {embed_dim} dimensions, made with cliplet {version}.

| | |
|---|---|
| parameters | {parameters:.1f} M |
| image tower | {image_tower} |
| text tower | {text_tower} |
| picture | {size} x {size} pixels |
| text | at most {context_length} tokens |
{facts}

{results}## Use

```python
import cliplet

encoder = {use}
image = encoder.encode_image(["photo.jpg"])
text = encoder.encode_text(["a dog in the snow"])
print(image @ text.T)
```

## How it was made

```
{command}
```

```yaml
{configuration}```

## Limits

It knows what its training captions speak of, in their language, and has learnt their biases too. The weights may be
bound to the licences of the data, of the pretrained towers and of the teachers named above.
"""

RESULTS = """\
## Results

On the split {split} of {data}: {images:,} pictures, {captions:,} captions. The best epoch was chosen by this split, so
the figures flatter the model a little. All captions of a picture are right; ties count against the model.

| | R@1 | R@5 | R@10 | median rank | mean rank |
|---|--:|--:|--:|--:|--:|
{rows}

The sum of all six recalls is {rsum:.1f}.

"""


def model_card(
    config: RunConfig, parameters: int, metrics: dict[str, float], command: str, teachers: Sequence[str] = ()
) -> str:
    """The card's Markdown, with the front matter that hubs read. `metrics`: from `retrieval_metrics`, or empty;
    `teachers`: the names of those it learnt from."""
    model, text = config.model, config.model.text
    data = Path(config.data.path).name
    start = config.train.start_from
    image_start = start or " or ".join(model.image.weights) or "random weights"
    text_start = start or " or ".join(text.sources) or "random weights"
    facts = [f"| recipe | {config.name} |", f"| data | {data}, split {config.data.train_split} |"]
    if teachers:
        facts.append(f"| taught by | {', '.join(teachers)} |")
    head = metadata([config.data.path], [start] if start else started_from(model))
    index = model_index(config.name, data, config.data.val_split, metrics)
    if index:
        head["model-index"] = index
    text_of_card = CARD.format(
        name=config.name,
        **_shape(model, parameters),
        image_tower=f"{_image_tower(model.image)}, started from {image_start}",
        text_tower=f"{TEXT_TOWERS[text.kind]}, started from {text_start}",
        facts="\n".join(facts),
        results=_results(metrics, data, config.data.val_split) if metrics else "",
        command=command or "cliplet.train(config), with the configuration below",
        configuration=to_yaml(config),
    )
    return with_metadata(head, text_of_card)


def imported_card(model: ModelConfig, name: str, source: str, parameters: int, command: str) -> str:
    """The card of a model that another tool trained."""
    return _card_without_run(model, name, f"| imported from | {source} |", [source], parameters, command)


def mixture_card(
    model: ModelConfig, name: str, start: str, tuned: str, share: float, parameters: int, command: str
) -> str:
    """The card of a model whose weights lie between two others', `share` of the way from `start` to `tuned`."""
    facts = f"| weights | {1 - share:g} of {start} + {share:g} of {tuned} (WiSE-FT, arXiv:2109.01903) |"
    return _card_without_run(model, name, facts, [start, tuned], parameters, command)


def _card_without_run(
    model: ModelConfig, name: str, facts: str, sources: Sequence[str], parameters: int, command: str
) -> str:
    text_of_card = CARD.format(
        name=name,
        **_shape(model, parameters),
        image_tower=_image_tower(model.image),
        text_tower=TEXT_TOWERS[model.text.kind],
        facts=facts,
        results="",
        command=command,
        configuration=to_yaml(model),
    )
    return with_metadata(metadata(base_models=sources), text_of_card)


EXPORTED = """
## Exported

Graphs for use without PyTorch, in {precision}, held against the model on {measured_on}. What is said above of weights
and results is of the model before the export.

| step | MB | cosine of pictures / sentences | R@1 image→text / text→image |
|---|--:|--:|--:|
{rows}
"""


def exported_section(export: Any) -> str:
    """What a card says of exported graphs. `export`: an Export of `runtime/exported.py`."""
    rows = []
    for step in export.steps:
        engines = dict.fromkeys(name.partition(" ")[2] for name in step.recalls)
        recalls = [
            " / ".join(f"{step.recalls[f'{direction}_R@1 {engine}']:.2f}" for direction in DIRECTIONS) + f" ({engine})"
            for engine in engines
        ]
        both = f"{step.image_cosine:.5f} / {step.text_cosine:.5f}"
        rows.append(f"| {step.step} | {step.bytes / 1e6:.1f} | {both} | {', '.join(recalls)} |")
    for size, values in export.dims_recalls.items():
        rows.append(f"| {size} dimensions | | | {' / '.join(f'{value:.2f}' for value in values.values())} |")
    precision = "8 bits" if export.precision == "int8" else "float32"
    return EXPORTED.format(precision=precision, measured_on=export.measured_on, rows="\n".join(rows))


TEXT_TOWERS = {
    "huggingface": "Hugging Face encoder",
    "transformer": "transformer",
    "open_clip": "OpenCLIP's",
}


def _image_tower(image: ImageTowerConfig) -> str:
    return "Hugging Face encoder" if image.kind == "huggingface" else image.name


def _shape(model: ModelConfig, parameters: int) -> dict[str, Any]:
    return {
        "version": __version__,
        "use": USE,
        "embed_dim": model.embed_dim,
        "parameters": parameters / 1e6,
        "size": model.preprocess.image_size,
        "context_length": model.text.context_length,
    }


def _results(metrics: dict[str, float], data: str, split: str) -> str:
    rows = [
        f"| {name} | "
        + " | ".join(f"{metrics[f'{direction}_R@{k}']:.2f}" for k in (1, 5, 10))
        + f" | {metrics[f'{direction}_median_rank']:g} | {metrics[f'{direction}_mean_rank']:.1f} |"
        for direction, name in DIRECTIONS.items()
    ]
    return RESULTS.format(
        split=split,
        data=data,
        images=metrics["images"],
        captions=metrics["captions"],
        rows="\n".join(rows),
        rsum=metrics["rsum"],
    )
