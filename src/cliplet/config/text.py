"""Configurations as text: YAML both ways, errors that name the key, and what differs between two."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from pydantic import ValidationError

from cliplet.config.base import Config
from cliplet.config.run import RunConfig
from cliplet.errors import ConfigError, nearest


def validated(model: type[Config], data: Any, where: str) -> Any:
    """`data` (plain dicts, lists, scalars) as a `model`; ConfigError naming key and place if it does not fit."""
    try:
        # By way of JSON: there, strictness forbids "5" for 5 but allows a list where a tuple is meant.
        return model.model_validate_json(json.dumps(data), strict=True)
    except (ValueError, TypeError) as error:  # pydantic's are ValueErrors; json's are of what is no plain data
        raise _readable(error, model, where) from None


def _readable(error: ValueError | TypeError, model: type[Config], where: str) -> ConfigError:
    if not isinstance(error, ValidationError):
        return ConfigError(f"{where}: not plain data: {error}")
    lines, hints = [], []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key {key}")
            hints.append(nearest(str(problem["loc"][-1]), _known_keys(model, problem["loc"][:-1])))
        else:
            got = "" if isinstance(problem["input"], dict) else f", got {problem['input']!r}"
            lines.append(f"{where}: {key or 'the whole'}: {problem['msg']}{got}")
    return ConfigError("\n".join(lines), "\n".join(hints))


def _known_keys(model: type[Config], path: tuple[Any, ...]) -> list[str]:
    """Keys of the part of `model` that `path` leads to; numbers in it are places in a list of parts."""
    for part in path:
        if isinstance(part, int):
            continue
        annotation: Any = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, Config))
    return list(model.model_fields)


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `from_yaml` reads back to an equal object."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def from_yaml(text: str, where: str = "configuration", base: RunConfig | None = None) -> RunConfig:
    """A run's configuration from YAML; keys left out keep the values of `base`.

    Raises ConfigError where the text is not YAML, or for an unknown key or a value of the wrong type.
    """
    try:
        # YAML 1.1 as PyYAML reads it takes 1e-4 for a string; people write exactly that for a learning rate.
        data = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: what looks like a date and is none
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected keys and values, found a {type(data).__name__}")
    merged = _merge((base or RunConfig()).model_dump(mode="json"), data)
    return validated(RunConfig, merged, where)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, part by part; lists are replaced whole."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def differences(old: Config, new: Config) -> list[str]:
    """Each key in which two configurations differ, as `train.seed: 0 -> 1`."""
    flat_old, flat_new = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    keys = list(flat_old) + [key for key in flat_new if key not in flat_old]
    absent = "(absent)"
    return [
        f"{key}: {flat_old.get(key, absent)} -> {flat_new.get(key, absent)}"
        for key in keys
        if flat_old.get(key, absent) != flat_new.get(key, absent)
    ]


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(data, dict):
        items: Any = data.items()
    elif isinstance(data, list) and any(isinstance(item, dict) for item in data):
        items = enumerate(data)
    else:
        return {prefix: data}
    return {k: v for key, value in items for k, v in _flat(value, f"{prefix}.{key}".lstrip(".")).items()}


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number, as everywhere else."""


class _Dumper(yaml.SafeDumper):
    """Its counterpart, which puts the text "1e-4" in quotes."""


for _reader_or_writer in (_Loader, _Dumper):
    _reader_or_writer.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )
