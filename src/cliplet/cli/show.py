"""The verb that shows what a model makes of one picture: show."""

# No `from __future__ import annotations` here, for the same reason as in the package's other verbs.

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cliplet.cli.options import parse
from cliplet.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from cliplet.evaluation.show import ShowResult

BAR = 20  # letters of the bar of a whole


def show(words: list[str]) -> None:
    """Rank captions for one picture: a table, and a picture of it."""
    import tyro

    @dataclasses.dataclass
    class Options:
        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
        """Model or run folder, or open_clip:ARCHITECTURE/PRETRAINED."""
        image: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
        """The picture."""
        texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CAPTION")] = ()
        """Captions to rank, each in quotation marks."""
        captions: Path | None = None
        """A file with more captions, one a line."""
        out: Path | None = Path("show.png")
        """Where to draw the picture with its captions; its ending says the format. None draws nothing."""
        json: bool = False
        """Print JSON instead of a table (docs/json.md)."""

    options: Options = parse(Options, "show", words, show.__doc__ or "")

    from rich import print as say

    from cliplet.data.images import load_image
    from cliplet.drawing import refuse_bad_target, save_picture
    from cliplet.evaluation.show import draw, explained, gather_captions, left_out, rank_captions
    from cliplet.files import refuse_unwritable
    from cliplet.runtime.encoder import load

    captions = gather_captions(options.texts, options.captions)
    load_image(options.image, smallest_side=1)  # before the model is opened, which takes longer
    if options.out:
        if options.out.exists() and Path(options.image).exists() and options.out.samefile(options.image):
            raise ConfigError(f"{options.out}: is the picture that is asked about", "Name another file with --out.")
        refuse_bad_target(options.out)
        refuse_unwritable(options.out)
    result = rank_captions(load(options.model), options.model, options.image, captions)
    if options.out:
        save_picture(draw(result), options.out)
    if options.json:
        print(result.to_json())
        return
    say(_table(result))
    print(explained(result))
    if left_out(result):
        print(f"{left_out(result)} --json prints all.")
    if options.out:
        print(f"picture: {options.out}")


def _table(result: "ShowResult") -> "Table":
    from rich.table import Table
    from rich.text import Text

    from cliplet.data.places import file_name
    from cliplet.evaluation.show import DRAWN

    shares = result.captions[0].share is not None
    table = Table(title=Text(f"{file_name(result.image)}, ranked by {result.model}"), title_justify="left")
    table.add_column("", justify="right")
    table.add_column("caption", overflow="fold")
    table.add_column("cosine", justify="right")
    if shares:
        table.add_column("share", justify="right")
        table.add_column("", min_width=BAR)
    for one in result.captions[:DRAWN]:
        cells: list[str | Text] = [f"{one.rank}", Text(one.text), f"{one.cosine:.3f}"]
        if one.share is not None:
            cells += [f"{one.share:.1%}", Text("█" * round(BAR * one.share), style="blue")]
        table.add_row(*cells)
    return table
