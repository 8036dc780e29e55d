"""The README of a model folder: what it is, what it was trained on, how good it is, how to use it."""

from __future__ import annotations

from pathlib import Path

from cliplet import __version__
from cliplet.config import RunConfig, to_yaml

CARD = """\
---
library_name: cliplet
pipeline_tag: feature-extraction
tags:
- clip
- image-text-retrieval
- dual-encoder
---

# {name}

A small CLIP: pictures and sentences in one space of {embed_dim} dimensions, made with cliplet {version}.

| | |
|---|---|
| parameters | {parameters:.1f} M |
| image tower | {image_tower}, started from {image_start} |
| text tower | {text_tower}, started from {text_start} |
| picture | {size} x {size} pixels |
| text | at most {context_length} tokens |
| recipe | {name} |
| data | {data}, split {split} |

{results}## Use

```python
import cliplet

encoder = cliplet.load("this folder")
image = encoder.encode_image(["photo.jpg"])
text = encoder.encode_text(["a dog in the snow"])
print(image @ text.T)
```

## How it was trained

```
{command}
```

```yaml
{configuration}```

## Limits

It knows what its training captions speak of, in their language, and has learnt their biases too. The weights may be
bound to the licences of the data and of the pretrained towers named above.
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


def model_card(config: RunConfig, parameters: int, metrics: dict[str, float], command: str) -> str:
    """The card's Markdown, with the front matter that hubs read. `metrics`: from `retrieval_metrics`, or empty."""
    model, text = config.model, config.model.text
    data = Path(config.data.path).name
    return CARD.format(
        name=config.name,
        version=__version__,
        embed_dim=model.embed_dim,
        parameters=parameters / 1e6,
        image_tower=model.image.name,
        image_start=" or ".join(model.image.weights) or "random weights",
        text_tower="Hugging Face encoder" if text.kind == "huggingface" else "transformer",
        text_start=" or ".join(text.sources) if text.kind == "huggingface" else "random weights",
        size=model.preprocess.image_size,
        context_length=text.context_length,
        data=data,
        split=config.data.train_split,
        results=_results(metrics, data, config.data.val_split) if metrics else "",
        command=command or "cliplet.train(config), with the configuration below",
        configuration=to_yaml(config),
    )


def _results(metrics: dict[str, float], data: str, split: str) -> str:
    rows = [
        f"| {name} | "
        + " | ".join(f"{metrics[f'{direction}_R@{k}']:.2f}" for k in (1, 5, 10))
        + f" | {metrics[f'{direction}_median_rank']:g} | {metrics[f'{direction}_mean_rank']:.1f} |"
        for name, direction in (("image→text", "image_to_text"), ("text→image", "text_to_image"))
    ]
    return RESULTS.format(
        split=split,
        data=data,
        images=metrics["images"],
        captions=metrics["captions"],
        rows="\n".join(rows),
        rsum=metrics["rsum"],
    )
