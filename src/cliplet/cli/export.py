"""The verb that makes a model run without PyTorch: export."""

# No `from __future__ import annotations` here, for the same reason as in the package's other verbs.

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cliplet.cli.options import parse, refuse_below
from cliplet.errors import INSTALL_TRAIN, ClipletError, ConfigError

if TYPE_CHECKING:
    from cliplet.export import Data


FEW = 16  # pictures, from which nothing is learnt


def export(words: list[str]) -> None:
    """Make a model run without PyTorch: ONNX graphs held against it; in 8 bits, a quarter of the size."""
    import tyro

    @dataclasses.dataclass
    class Options:
        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
        """Model or run folder, a name on the hub, or open_clip:ARCHITECTURE/PRETRAINED."""
        out: Path | None = None
        """New folder with all that is needed to use the model, and no more; by itself, the graphs go into MODEL."""
        int8: bool = False
        """Weights in 8 bits, and most of the arithmetic; needs --data."""
        dims: str = ""
        """Smaller features to offer as well, as numbers of dimensions: 256,128. Good ones need --data."""
        data: str = ""
        """Data set with captions: what is exported is held against it, R@1 measured, 8 bits calibrated."""
        split: str = "val"
        """Split to measure on. 8 bits are calibrated on the training split, or on what is left of this one."""
        images: Path | None = None
        """Folder of the pictures, where it cannot be found from the annotation file."""
        samples: int = 1000
        """Pictures to measure R@1 on."""
        calibration: int = 256
        """Pictures to calibrate 8 bits on."""
        max_loss: float = 1.0
        """Points of R@1, in either direction, that 8 bits may cost; layers are put back to floats until it holds."""
        min_cosine: float = 0.0
        """Mean cosine to the original's features that 8 bits must keep as well; 0.999 where they are to be the same."""
        json: bool = False
        """Print JSON, which is what onnx/parity.json holds, instead of a table (docs/json.md)."""

    options: Options = parse(Options, "export", words, export.__doc__ or "")
    refuse_below(samples=(options.samples, 1), calibration=(options.calibration, 8))
    if not (0 <= options.max_loss <= 100 and 0 <= options.min_cosine < 1):
        raise ConfigError("--max-loss must be from 0 to 100, and --min-cosine from 0 to below 1")
    dims = _dims(options.dims)

    from functools import partial

    from rich.console import Console

    from cliplet.console import say

    try:
        from cliplet.export import ExportOptions
        from cliplet.export import export as run
    except ModuleNotFoundError as error:
        raise ClipletError(f"exporting needs the package {error.name}, which is not installed", INSTALL_TRAIN) from None
    console = Console(stderr=True)
    data = _data(options) if options.data else None
    wanted = ExportOptions(options.int8, dims, options.max_loss, options.min_cosine, options.calibration)
    folder, made = run(options.model, options.out, wanted, data, partial(say, console))
    if options.json:
        print(made.to_json())
        return
    from rich import print as show

    from cliplet.console import export_table

    show(export_table(made))
    size = sum(file.stat().st_size for file in (folder / "onnx").iterdir())
    print(f"{made.parameters / 1e6:.1f} M parameters in {size / 1e6:.1f} MB: {folder / 'onnx'}")


def _dims(text: str) -> tuple[int, ...]:
    """Numbers between commas, the largest first."""
    try:
        numbers = {int(word) for word in text.replace(" ", "").split(",") if word}
    except ValueError:
        raise ConfigError(f"--dims takes numbers between commas, like 256,128; got {text!r}") from None
    return tuple(sorted(numbers, reverse=True))


def _data(options: Any) -> "Data":
    """What to measure on, and other pictures to learn ranges and directions from."""
    from cliplet.data.readers import read_source
    from cliplet.export import Data

    source = read_source(options.data, options.images)
    records = source.select(options.split)
    measured, rest = records[: options.samples], records[options.samples :]
    named = options.split.split("+")
    if options.split != "all" and "train" not in named and (source.makes_splits or "train" in source.splits):
        rest = source.select("train")
    if len(rest) < min(FEW, len(measured)):
        half = len(records) // 2
        if not half:
            raise ConfigError(f"{options.data}: one picture cannot both calibrate and measure", "Name more pictures.")
        measured, rest = records[:half][: options.samples], records[half:]
    return Data(measured, rest, f"{options.data}, split {options.split}")
