"""Whether a store of teachers' embeddings may be made, or gone on with, in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cliplet.config import differences
from cliplet.data.pack_plan import refuse_broken
from cliplet.data.shards import MANIFEST, PART, QUARANTINE
from cliplet.data.teacher_store import StoreManifest, StoreSettings
from cliplet.errors import ConfigError, DataError


def check_settings(teachers: Sequence[str], settings: StoreSettings, workers: int | None) -> None:
    """Raises ConfigError for a value that cannot be."""
    rules = (
        (bool(teachers), "no teacher is named", "--teacher names one: a model folder, or open_clip:NAME/WEIGHTS."),
        (settings.augmentations >= 0, f"--augmentations is {settings.augmentations}", "It cannot be negative."),
        (settings.views > 0, "there are no views to store", "Set --augmentations 1 or more, or --whole, or both."),
        (settings.seed >= 0, f"--seed is {settings.seed}", "It cannot be negative."),
        (settings.samples is None or settings.samples >= 1, f"--samples is {settings.samples}", "Take one at least."),
        (workers is None or workers >= 1, f"--workers is {workers}", "It takes one thread at least."),
    )
    refuse_broken(rules)


def refuse_twice(names: Sequence[str]) -> None:
    """Raises ConfigError for a teacher that is named twice."""
    if len(set(names)) < len(names):
        raise ConfigError("a teacher is named twice", "Name each teacher once.")


def check_folder(data: str, images: Path | None, out: Path) -> None:
    """Raises DataError where a store would get between other files, or into the data itself."""
    new = "Name a new folder for the store."
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file", new)
    folder = out.resolve()
    for name in (data, images):
        place = Path(name).expanduser().resolve() if name and "://" not in str(name) else None
        if place and place.exists() and (place == folder or folder in place.parents):
            raise DataError(f"{out}: holds the data, {name}", new)
    if out.is_dir() and not (out / MANIFEST).is_file():
        ours = (QUARANTINE, MANIFEST + PART)
        others = sorted(file.name for file in out.iterdir() if file.name not in ours and not file.name.startswith("."))
        if others:
            raise DataError(f"{out}: holds other files: {', '.join(others[:3])}", new)


def refuse_other(
    out: Path,
    earlier: StoreManifest,
    settings: StoreSettings,
    teachers: list[tuple[str, str, str]],
    mark: str | None = None,
) -> None:
    """Raises DataError where a store was begun with other settings or teachers, or (if `mark` is given) other data.

    `teachers`: of each its name, the sha256 of its weights and its precision.
    """
    before, now = asdict(earlier.settings), asdict(settings)
    differing = [
        f"--{name.replace('_', '-')} was {before[name]} and is {now[name]}"
        for name in now
        if name != "augment" and before[name] != now[name]
    ]
    differing += [f"augment.{line}" for line in differences(earlier.settings.augment, settings.augment)]
    if [info.name for info in earlier.teachers] != [name for name, _, _ in teachers]:
        named = ", ".join(name for name, _, _ in teachers)
        differing.append(f"the teachers were {', '.join(info.name for info in earlier.teachers)} and are {named}")
    else:
        for info, (name, weights, precision) in zip(earlier.teachers, teachers, strict=True):
            if info.weights != weights:
                differing.append(f"the teacher {name} has other weights by now")
            if info.precision != precision:
                differing.append(f"the precision was {info.precision} and is {precision}")
    if mark is not None and mark != earlier.fingerprint:
        differing.append(f"the data ({earlier.source}) has other pictures or captions")
    if differing:
        begun = "Name another folder, or remove this one to begin anew"
        if {info.precision for info in earlier.teachers} != {precision for _, _, precision in teachers}:
            begun = f"To go on with it, add --precision {earlier.teachers[0].precision}; or name another folder"
        raise DataError(
            f"{out}: was begun otherwise: {'; '.join(dict.fromkeys(differing))}",
            f"{begun}. It was begun by: {earlier.command}",
        )
