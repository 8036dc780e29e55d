"""Where pretrained weights come from: hub names, local files and folders, installed packages; tried in order."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import safetensors
import safetensors.torch
import torch
from torch import nn

from cliplet.errors import ModelError
from cliplet.hub import hub_answers

T = TypeVar("T")


def first_that_loads(what: str, sources: Sequence[str], load: Callable[[str], T], say: Callable[[str], None]) -> T:
    """`load` of the first source that works. Each failure is told to `say`; if all fail, ModelError lists them."""
    if not sources:
        raise ModelError(f"{what}: no source is named", "Name a hub name, a folder or a file.")
    failures: list[str] = []
    for source in sources:
        if not source.startswith("pkg:") and not Path(source).exists():
            look_for_the_hub()
        try:
            found = load(source)
            if failures:
                say(f"{what}: taken from {source}")
            return found
        except ModelError as error:
            failures.append(f"  {source}: {error.message}")
            if len(failures) < len(sources):
                say(f"{what}: {source} failed, trying the next: {error.message}")
    raise ModelError(
        f"{what}: none of its sources could be loaded\n" + "\n".join(failures),
        "Without a network, name a local file or folder instead; for a private hub model, log in first "
        "(hf auth login); to train from scratch, give no sources.",
    )


@cache
def look_for_the_hub() -> None:
    """Goes offline, in this process, where the hub does not answer: its client would then use its cache at once, and
    else try again for minutes, file by file, before it does."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not hub_answers():
        constants.HF_HUB_OFFLINE = True


def resolve(source: str) -> str:
    """`pkg:PACKAGE/PATH` as the path inside that installed package; everything else as it is."""
    if not source.startswith("pkg:"):
        return source
    package, _, inside = source[4:].partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the Python package {package} is not installed")
    return str(Path(spec.submodule_search_locations[0]) / inside)


def read_weights(file: str | Path) -> dict[str, torch.Tensor]:
    """Named tensors from a .safetensors file, or from a torch file of plain tensors.

    Nothing is unpickled: torch files are opened with weights_only. Raises ModelError.
    """
    file = Path(file)
    if not file.is_file():
        raise ModelError(f"{file}: no such file")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated, another format, or a pickle of code: all are refused alike
        raise ModelError(f"{file}: cannot be opened as weights: {_first_line(error)}") from None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ModelError(f"{file}: holds no plain table of named tensors")
    return weights


def load_exactly(module: nn.Module, weights: dict[str, torch.Tensor], where: str, ignore: tuple[str, ...] = ()) -> None:
    """Loads `weights` into `module`; ModelError tells what is missing, left over or of another shape.

    `ignore`: beginnings of names that may be left over (a classifier that the tower does without).
    """
    own = module.state_dict()
    missing = [name for name in own if name not in weights]
    extra = [name for name in weights if name not in own and not name.startswith(ignore or ("\0",))]
    shapes = [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("left over", extra), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise ModelError(f"{where}: its weights do not fit: " + "; ".join(problems))
    module.load_state_dict({name: weights[name] for name in own})


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
