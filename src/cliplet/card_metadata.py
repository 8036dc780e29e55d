"""What hubs read of a model card: the YAML between two lines of dashes at its head."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from cliplet.config import ModelConfig
from cliplet.errors import ModelError
from cliplet.hub import is_hub_name
from cliplet.result import DIRECTIONS

UNKNOWN = "unknown"  # the hub's own word for a licence that nobody has named
_HEAD = re.compile(r"\A(\ufeff?\s*---[ \t]*\r?\n)(.*?)(^---[ \t]*\r?$)", re.DOTALL | re.MULTILINE)


def metadata(datasets: Sequence[str] = (), base_models: Sequence[str] = ()) -> dict[str, Any]:
    """A card's metadata without results. `datasets`, `base_models`: whatever they were called; only what is a name on
    the hub is kept, for a hub takes no other."""
    data: dict[str, Any] = {
        "library_name": "cliplet",
        "pipeline_tag": "feature-extraction",
        "license": UNKNOWN,
        "tags": ["clip", "image-text-retrieval", "dual-encoder"],
    }
    sets = [":".join(one.split(":")[1:2]) for one in datasets if one.startswith("hf:")]
    for key, names in (("datasets", sets), ("base_model", base_models)):
        known = list(dict.fromkeys(name.partition("@")[0] for name in names if is_hub_name(name)))
        if known:
            data[key] = known
    return data


def started_from(model: ModelConfig) -> list[str]:
    """Where the configuration takes pretrained weights from, as far as a hub knows it by a name."""
    image = [f"timm/{model.image.name}" if source == "hub" else source for source in model.image.weights]
    # timm's short names do not say which of several weights they stand for.
    return [name for name in image if not name.startswith("timm/") or "." in name] + list(model.text.sources)


def model_index(name: str, data: str, split: str, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The recalls of `retrieval_metrics` in the form that hubs show as results; an empty list where there are none."""
    recalls = [
        {"type": f"{way}_R@{k}", "name": f"{words} R@{k}", "value": round(float(metrics[f"{way}_R@{k}"]), 4)}
        for way, words in DIRECTIONS.items()
        for k in (1, 5, 10)
        if _is_number(metrics.get(f"{way}_R@{k}"))
    ]
    if not recalls:
        return []
    task = {"type": "image-text-retrieval", "name": "Image-text retrieval"}
    dataset = {"type": data or UNKNOWN, "name": data or UNKNOWN, "split": split or UNKNOWN}
    return [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": recalls}]}]


def with_metadata(data: Mapping[str, Any], card: str) -> str:
    """The card with this metadata at its head."""
    return f"---\n{_as_yaml(data)}---\n{card}"


def without(key: str, card: str, where: str) -> str:
    """The card without what its head says under a key. Raises ModelError as `read_metadata`."""
    data, head = read_metadata(card, where), _HEAD.match(card)
    if head is None or key not in data:
        return card
    del data[key]
    return with_metadata(data, card[head.end() :])


def read_metadata(card: str, where: str) -> dict[str, Any]:
    """What a card's head says; nothing where it has none. Raises ModelError for one that is no table in YAML."""
    head = _HEAD.match(card)
    if not head:
        return {}
    try:
        data = yaml.safe_load(head[2])
    except yaml.YAMLError as error:
        raise ModelError(
            f"{where}: what stands between the dashes is no YAML: {' '.join(str(error).split())}",
            "Put it right: quote values that hold a colon, or remove those lines.",
        ) from None
    if data is not None and not isinstance(data, dict):
        raise ModelError(f"{where}: what stands between the dashes is no table", "Write a key and a value a line.")
    return data or {}


def completed(card: str, where: str, known: Mapping[str, Any], license_id: str = "") -> str:
    """The card with what its head lacks of `known`, and with this licence. All that somebody wrote stays as it is.

    `where` names the card in errors. Raises ModelError for a head that cannot be read, or one that names another
    licence.
    """
    written = read_metadata(card, where)
    named = written.get("license")
    if license_id and named not in (None, "", UNKNOWN, license_id):
        raise ModelError(
            f"{where}: says that the licence is {named}, not {license_id}", "Change it there, or leave --license out."
        )
    wanted = {**known, **({"license": license_id} if license_id else {})}
    empty = [key for key, value in written.items() if value in (None, "", [])]
    if license_id and named == UNKNOWN:
        empty.append("license")
    added = {key: value for key, value in wanted.items() if key not in written or key in empty}
    head = _HEAD.match(card)
    if not head:
        return with_metadata(added, f"\n{card}" if card else card)
    kept = head[2]
    for key in empty:
        if key in added:
            kept = re.sub(rf"^{re.escape(str(key))}[ \t]*:[^\n]*\n", "", kept, count=1, flags=re.MULTILINE)
    text = kept + (_as_yaml(added) if added else "")
    everything = {**written, **added}
    try:
        same = yaml.safe_load(text) == everything
    except yaml.YAMLError:
        same = False
    # A head of another shape than a key a line cannot be added to, and is written anew.
    return head[1] + (text if same else _as_yaml(everything)) + head[3] + card[head.end() :]


def _as_yaml(data: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=math.inf)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
