"""The verb that stores what teachers say, for students to learn from."""

# No `from __future__ import annotations` here, as in `cli/__init__.py`.

import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cliplet.cli.options import parse
from cliplet.errors import INSTALL_TRAIN, ClipletError


def distil_store(words: list[str]) -> None:
    """Store what teachers make of a data set: embeddings of augmented views and captions, for training to replay."""
    import tyro

    from cliplet.config import AugmentConfig, RunConfig
    from cliplet.console import speed_bar
    from cliplet.recipes import recipe

    named = _recipe_named(words)
    base = recipe(named) if named else RunConfig()

    @dataclasses.dataclass
    class Options:
        data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
        """Whatever `cliplet train` reads: annotation file, folder, tar shards, URL."""
        out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
        """Folder to write; an unfinished store of the same data, teachers and settings is gone on with."""
        teacher: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="TEACHER")] = ()
        """Model or run folder, or open_clip:ARCHITECTURE/PRETRAINED; once for each teacher."""
        augmentations: int = 5
        """Random views of each picture."""
        recipe: str = ""
        """Take augmentation, teachers and split from this recipe; options given here go before it."""
        augment: AugmentConfig = base.augment
        """What views are drawn from; training must have the same."""
        whole: bool = any(not stage.augment for stage in base.train.stages)
        """Also the whole picture, unflipped, for stages without augmentation."""
        storage: Literal["float16", "int8"] = "float16"
        """How a number is kept: int8 takes half the room, for an error of 0.4 % of a row's largest."""
        split: str = base.data.train_split
        """Split to store, or several joined by +; all takes every picture."""
        images: Path | None = None
        """Folder of the pictures, where it cannot be found from the annotation file."""
        samples: int | None = None
        """Store the first so many pictures of each split only."""
        seed: int = 0
        """Of the views."""
        device: str = "auto"
        """auto, cpu, cuda, cuda:1, mps, ..."""
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
        """auto: bf16 or fp16 where the device is fast at it, fp32 elsewhere."""
        workers: int | None = None
        """Decoding threads; by itself, half the processor's cores, at most 8."""
        json: bool = False
        """Print JSON instead of text (docs/json.md)."""

    options: Options = parse(Options, "distil-store", words, distil_store.__doc__ or "")
    try:
        from cliplet.data.teacher_store import StoreSettings
        from cliplet.training.store_making import make_store
    except ModuleNotFoundError as error:
        raise ClipletError(f"teachers need the package {error.name}, which is not installed", INSTALL_TRAIN) from None

    settings = StoreSettings(
        options.augmentations,
        options.whole,
        options.augment,
        options.storage,
        options.split,
        options.seed,
        options.samples,
    )
    with speed_bar("embedding") as tell:
        result = make_store(
            options.data,
            options.out,
            options.teacher or base.distil.teachers,
            settings,
            images=options.images,
            device=options.device,
            precision=options.precision,
            workers=options.workers,
            say=lambda message: print(message, file=sys.stderr) if os.environ.get("RANK", "0") == "0" else None,
            tell=tell,
            command="cliplet distil-store " + shlex.join(words),
        )
    if result.rank:
        return
    following = _training(options, named, base, result.manifest.teachers)
    if options.json:
        print(_for_programs(result, options.out, following).to_json())
    else:
        print(f"{_summary(result)}\nnext: {following}")


def _recipe_named(words: list[str]) -> str:
    """The value of --recipe, which other options have their defaults from."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--recipe":
            return following
        if word.startswith("--recipe="):
            return word.removeprefix("--recipe=")
    return ""


def _training(options: Any, named: str, base: Any, teachers: Any) -> str:
    """The command that trains from the store: the recipe, with what the store has otherwise."""
    from cliplet.recipes import recipe

    following = base if named else recipe("student")
    flags = ["--data.path", options.data, "--distil.store", str(options.out)]
    if options.images:
        flags += ["--data.images", str(options.images)]
    if options.samples:
        flags += ["--data.samples", str(options.samples)]
    if options.split != following.data.train_split:
        flags += ["--data.train-split", options.split]
    if following.distil.teachers and {one.name for one in teachers} != set(following.distil.teachers):
        flags += ["--distil.teachers", *(one.name for one in teachers)]
    for key, value in options.augment.model_dump().items():
        if value != getattr(following.augment, key):
            values = value if isinstance(value, tuple) else (value,)
            flags += [f"--augment.{key.replace('_', '-')}", *map(str, values)]
    if not options.augmentations:
        for number, stage in enumerate(following.train.stages):
            flags += [f"--train.stages.{number}.augment", "False"] if stage.augment else []
    return f"cliplet train {named or 'student'} {shlex.join(flags)}"


def _for_programs(result: Any, out: Path, following: str) -> Any:
    """What the store holds, as JSON has it. `result`: a StoreResult."""
    from cliplet.results import StoreSummary

    manifest = result.manifest
    return StoreSummary(
        out=str(out),
        teachers=[teacher.name for teacher in manifest.teachers],
        pictures=sum(shard.pictures for shard in manifest.shards) - manifest.left_out,
        captions=sum(shard.captions for shard in manifest.shards),
        views=manifest.settings.views,
        left_out=manifest.left_out,
        shards=len(manifest.shards),
        bytes=result.bytes,
        computed_now=result.computed,
        seconds=result.seconds,
        next=following,
    )


def _summary(result: Any) -> str:
    """What the store holds, for the end of the command. `result`: a StoreResult."""
    from cliplet.console import counted

    manifest = result.manifest
    pictures = sum(shard.pictures for shard in manifest.shards) - manifest.left_out
    lines = [
        f"{counted(pictures, 'picture')} with {counted(manifest.settings.views, 'view')} each, "
        f"{counted(sum(shard.captions for shard in manifest.shards), 'caption')}, "
        f"{counted(len(manifest.teachers), 'teacher')}, {counted(len(manifest.shards), 'shard')}; "
        f"{counted(manifest.left_out, 'picture')} left out",
        f"{result.bytes / 1e6:,.1f} MB: {result.bytes / pictures / 1e3:,.1f} GB per million pictures",
    ]
    if result.computed:
        speed = result.computed / max(result.seconds, 1e-6)
        lines.append(f"{result.computed:,} pictures in {result.seconds:,.1f} s: {speed:,.0f} pictures/s")
    else:
        lines.append("The store was complete already; nothing was done.")
    if result.quarantine:
        lines.append(result.quarantine.summary())
    return "\n".join(lines)
