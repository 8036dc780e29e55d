"""Plain data as a configuration, with errors that name the key."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from cliplet.config.base import Config
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
