"""Configurations as text: YAML both ways, and what differs between two."""

from __future__ import annotations

import re
from typing import Any

import yaml

from cliplet.config.base import Config
from cliplet.config.checks import validated
from cliplet.config.run import RunConfig
from cliplet.errors import ConfigError


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
