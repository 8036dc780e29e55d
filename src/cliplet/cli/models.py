"""The verbs that make model folders of models that are there already: import and interpolate."""

# No `from __future__ import annotations` here, for the same reason as in the package's other verbs.

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, Any

from cliplet.cli.options import parse
from cliplet.errors import INSTALL_TRAIN, ClipletError


def import_model(words: list[str]) -> None:
    """Turn a model of another project into a model folder: five systems' checkpoints, Hugging Face, OpenCLIP."""
    import tyro

    @dataclasses.dataclass
    class Sources:
        source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
        """Checkpoint file of a system; folder of a CLIPModel or VisionTextDualEncoderModel;
        open_clip:ARCHITECTURE/PRETRAINED."""
        out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
        """Model folder to write."""
        system: int | None = None
        """Whose checkpoint it is: 1 TinyCLIP-ConvFFN, 2 MiniCLIP, 3 TinyMVLM, 4 miniCLIP_DL, 5 Mini-CLIP from
        scratch."""
        tokenizer: str = ""
        """Where its tokenizer is: hub name, folder, tokenizer.json or pkg:PACKAGE/PATH. By itself, the system's own."""
        vocabulary: str = ""
        """System 5: the captions that its words were learnt from."""
        image_tower: str = ""
        """Systems 1 to 5: the image tower's name in timm, where it is not the system's usual one."""
        image_config: str = ""
        """System 4: hub name, folder or config.json of a ViT that is not the system's usual one."""
        text_config: str = ""
        """Systems 1, 3, 4: hub name, folder or config.json of a text tower that is not the system's usual one."""
        json: bool = False
        """Print JSON instead of text (docs/json.md)."""

    options: Sources = parse(Sources, "import", words, import_model.__doc__ or "")
    from functools import partial

    from rich.console import Console

    from cliplet.console import say
    from cliplet.model_card import imported_card

    _refuse_existing(options.out)
    try:
        from cliplet.importing import Options, import_any
    except ModuleNotFoundError as error:
        raise ClipletError(f"importing needs the package {error.name}, which is not installed", INSTALL_TRAIN) from None

    details = Options(
        options.tokenizer, options.vocabulary, options.image_tower, options.image_config, options.text_config
    )
    model = import_any(options.source, options.system, details, partial(say, Console(stderr=True)))
    command = "cliplet import " + shlex.join(words)
    model.save_pretrained(
        options.out, imported_card(model.config, options.out.name, options.source, model.count_parameters(), command)
    )
    pictures = model.config.preprocess
    if options.json:
        _print_json(options.out, [options.source], model)
        return
    print(
        f"{model.count_parameters() / 1e6:.1f} M parameters; model: {options.out}\n"
        f"pictures: {pictures.resize} to {pictures.image_size} pixels, mean {pictures.mean}, deviation {pictures.std}; "
        "if they were otherwise in training, edit model.preprocess in its config.json"
    )


def interpolate(words: list[str]) -> None:
    """Mix a model with the one that its training started from, to keep more of what that one knew."""
    import tyro

    @dataclasses.dataclass
    class Options:
        start: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="START")]
        """Model that the training started from: model folder, run folder or open_clip:ARCHITECTURE/PRETRAINED."""
        tuned: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TUNED")]
        """Model that came out of it: model folder or run folder."""
        out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
        """Model folder to write."""
        share: float = 0.5
        """Share of the tuned weights, from 0 (START) to 1 (TUNED)."""
        json: bool = False
        """Print JSON instead of text (docs/json.md)."""

    options: Options = parse(Options, "interpolate", words, interpolate.__doc__ or "")
    from cliplet.model_card import mixture_card

    _refuse_existing(options.out)
    try:
        from cliplet.models.pretrained import open_model
        from cliplet.training.averages import interpolate as mix
        from cliplet.training.averages import refuse_bad_share
    except ModuleNotFoundError as error:
        raise ClipletError(f"mixing needs the package {error.name}, which is not installed", INSTALL_TRAIN) from None

    refuse_bad_share(options.share)
    model = mix(open_model(options.start), open_model(options.tuned), options.share)
    parameters, command = model.count_parameters(), "cliplet interpolate " + shlex.join(words)
    card = mixture_card(
        model.config, options.out.name, options.start, options.tuned, options.share, parameters, command
    )
    model.save_pretrained(options.out, card)
    if options.json:
        _print_json(options.out, [options.start, options.tuned], model)
        return
    print(
        f"{parameters / 1e6:.1f} M parameters; model: {options.out}\n"
        f"how good it is: cliplet evaluate {shlex.quote(str(options.out))} DATA"
    )


def _print_json(out: Path, sources: list[str], model: Any) -> None:
    from cliplet.results import ModelSummary

    preprocess = model.config.preprocess.model_dump(mode="json")
    summary = ModelSummary(model=str(out), sources=sources, parameters=model.count_parameters(), preprocess=preprocess)
    print(summary.to_json())


def _refuse_existing(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ClipletError(f"{out}: is there already", "Name another folder, or remove this one first.")
