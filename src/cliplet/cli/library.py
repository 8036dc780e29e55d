"""The verbs of a library of pictures: index, search, duplicates."""

# No `from __future__ import annotations` here, for the same reason as in the package's other verbs.

import dataclasses
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cliplet.cli.options import parse, refuse_below
from cliplet.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from cliplet.library.query import Query
    from cliplet.results import IndexSummary

DEFAULT_K = 10
FEW = 20  # pictures whose embedding says nothing of how fast it is


def index(words: list[str]) -> None:
    """Make a library of the pictures in folders, or bring one up to date: new, changed, moved and removed ones."""
    import tyro

    @dataclasses.dataclass
    class Options:
        library: Annotated[str, tyro.conf.arg(aliases=("-l",))]
        """Folder of the library, made if it is not there; or lance:URI, a LanceDB table anywhere."""
        folders: Annotated[
            tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER...", help_behavior_hint="")
        ] = ()
        """Folders with pictures; those of earlier calls are looked through again by themselves."""
        model: Annotated[str, tyro.conf.arg(aliases=("-m",), help_behavior_hint="")] = ""
        """Model or run folder, or a name on the hub; needed the first time."""
        captions: Annotated[str, tyro.conf.arg(help_behavior_hint="")] = ""
        """Annotation file or data set with captions of the pictures, of any kind that cliplet reads."""
        upgrade: bool = False
        """Embed all anew with another model; the library answers with the old vectors until that is done."""
        forget: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
        """A folder to take out of the library, with its pictures; the files stay where they are."""
        repair: bool = False
        """Look for damage and mend it; the pictures themselves are never touched."""
        wait: bool = False
        """Wait for another process that is writing to the library."""
        follow_links: bool = False
        """Follow links that lead out of the folders."""
        engine: str = "auto"
        """openvino, onnxruntime or torch; auto takes the fastest that is right. ray is the same as --workers ray."""
        precision: str = "auto"
        """fp32 or bf16; auto takes bf16 only where it is as good."""
        dims: int | None = None
        """Vectors of so many numbers, one of the sizes that were exported."""
        batch_size: int | None = None
        """Pictures that the engine gets at once; by itself what suits it."""
        workers: Literal["local", "ray"] = "local"
        """ray spreads the work over a cluster, or this machine's cores; the library is lance:URI (docs/scale.md)."""
        json: bool = False
        """Print JSON instead of text (docs/json.md)."""
        quarantine: Path | None = None
        """Where files that could not be read, now or earlier, are written down with the reasons, as JSON lines."""

    options: Options = parse(Options, "index", words, index.__doc__ or "")
    refuse_below(dims=(options.dims, 1), batch_size=(options.batch_size, 1))

    if options.engine == "ray":
        options.engine, options.workers = "auto", "ray"

    def say(message: str) -> None:
        print(message, file=sys.stderr)

    if options.repair:
        from cliplet.library.repair import repair
        from cliplet.library.store import LANCE

        if options.library.startswith(LANCE):
            raise ConfigError("--repair mends folders; a table in LanceDB keeps its earlier versions (docs/scale.md)")

        repair(Path(options.library), say)
    from cliplet.console import speed_bar
    from cliplet.library.making import opened_or_made
    from cliplet.library.scan import check_folders

    check_folders(options.folders)  # before anything is made
    with opened_or_made(options.library) as library, speed_bar("indexing") as tell:
        summary = library.add(
            *options.folders,
            captions=options.captions or None,
            model=options.model or None,
            **{name: getattr(options, name) for name in ("engine", "precision", "dims", "upgrade", "forget", "wait")},
            **{name: getattr(options, name) for name in ("follow_links", "quarantine", "batch_size", "workers")},
            tell=tell,
            say=say,
        )
    print(summary.to_json() if options.json else _told(summary))


def _told(summary: "IndexSummary") -> str:
    """The summary for people."""
    from cliplet.console import counted

    done = {"new": summary.added, "changed": summary.changed, "moved": summary.moved, "removed": summary.removed}
    what = ", ".join(f"{count:,} {name}" for name, count in done.items() if count) or "nothing new"
    # Of a few the speed is that of opening the model; and what has a vector already is not embedded.
    looked_at = summary.added + summary.changed + summary.moved
    told = summary.pictures_per_second and summary.embedded >= max(FEW, looked_at / 2)
    speed = f", {summary.pictures_per_second:,.0f} a second" if told else ""
    lines = [f"{summary.library}: {counted(summary.pictures, 'picture')}; {what}; {summary.seconds:,.1f} s{speed}"]
    if summary.captions:
        lines.append(f"{counted(summary.captions, 'caption')} embedded")
    if summary.failed:
        lines.append(f"{counted(summary.failed, 'file')} could not be read (--quarantine FILE names all, and says why)")
    elif summary.unreadable:
        count = f"{counted(summary.unreadable, 'file')} of earlier runs"
        lines.append(
            f"{count} could not be read, and {_has(summary.unreadable)} not changed (--quarantine FILE says why)"
        )
    return "\n".join(lines)


def _has(count: int) -> str:
    return "has" if count == 1 else "have"


def search(words: list[str]) -> None:
    """Search a library by a sentence, a picture, or sums and differences of them."""
    began = time.monotonic()
    plain = plain_options(words)
    if plain:
        _search(**plain, began=began)
        return

    import tyro

    @dataclasses.dataclass
    class Options:
        library: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LIBRARY")]
        """Folder, or lance:URI."""
        query: Annotated[
            tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="QUERY...", help_behavior_hint="")
        ] = ()
        """a dog in the snow; x.jpg; beach + x.jpg - people; 0.5 before a term is its weight."""
        image: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
        """A picture to add to the query; may be given many times."""
        where: Annotated[str, tyro.conf.arg(help_behavior_hint="")] = ""
        """Filter, as in: year = 2024 and width > 2000 and tag = 'beach' (docs/library.md)."""
        by: Literal["pictures", "captions"] = "pictures"
        """What is compared with the query: pictures, or their captions."""
        captions: bool = False
        """Find captions instead of pictures, most often for a picture; --where keeps to those of some pictures."""
        k: Annotated[int, tyro.conf.arg(aliases=("-k",))] = DEFAULT_K
        """How many."""
        offset: int = 0
        """How many of the best to pass over."""
        engine: str = "auto"
        """What computes the query; auto takes what computed the library."""
        sheet: Path | None = None
        """Picture to draw with what was found: .png, .jpg or .webp."""
        open: bool = False
        """Open the pictures in the system's viewer."""
        json: bool = False
        """Print JSON instead of text (docs/json.md)."""

    options: Options = parse(Options, "search", words, search.__doc__ or "")
    refuse_below(k=(options.k, 1), offset=(options.offset, 0))
    _search(**vars(options), began=began)


def plain_options(words: Sequence[str]) -> dict[str, Any]:
    """The options of a search that has nothing but a library, a query, -k and --json; empty for any other.

    It is what one waits for at a prompt, and building the whole command line takes a fifth of that time.
    """
    values: dict[str, Any] = {"query": [], "k": DEFAULT_K, "json": False}
    remaining = iter(words)
    for word in remaining:
        if word == "-k":
            number = next(remaining, "")
            if not number.isdecimal() or not int(number):
                return {}
            values["k"] = int(number)
        elif word == "--json":
            values["json"] = True
        elif word.startswith("-") and word != "-":
            return {}
        elif "library" in values:
            values["query"].append(word)
        else:
            values["library"] = word
    return values if values["query"] else {}


def _search(
    library: str,
    query: Sequence[str],
    began: float,
    k: int = DEFAULT_K,
    image: Sequence[str] = (),
    where: str = "",
    by: Literal["pictures", "captions"] = "pictures",
    captions: bool = False,
    offset: int = 0,
    engine: str = "auto",
    sheet: Path | None = None,
    open: bool = False,
    json: bool = False,
) -> None:
    from cliplet.library import Library
    from cliplet.library.query import Query

    if sheet:
        from cliplet.drawing import refuse_bad_target

        refuse_bad_target(sheet)
    if captions and (sheet or open or by != "pictures"):
        raise ConfigError("--captions finds captions; --by, --sheet and --open are for pictures")
    asked = _query(query, image)
    assert isinstance(asked, Query)
    with Library.open(library, engine=engine) as opened:
        if captions:
            from cliplet.library.telling import captions_result, captions_text

            with _named_by_people():
                found = opened.captions(asked, k, offset=offset, where=where)
            told = captions_result(library, asked, found, time.monotonic() - began)
            print(told.to_json() if json else captions_text(told, where))
            return
        from cliplet.library.telling import draw, open_files, search_result, search_text

        with _named_by_people():
            hits = opened.search(asked, k, offset=offset, where=where, by=by)
    if sheet:
        draw(asked, where, hits, sheet)  # before what whoever reads the hits may break off
        print(f"drawn: {sheet}", file=sys.stderr)
    if json:
        print(search_result(library, asked, where, hits, time.monotonic() - began).to_json())
    else:
        print(search_text(hits, where))
    if open:
        open_files([hit.path for hit in hits])


@contextmanager
def _named_by_people() -> Iterator[None]:
    """A picture that cannot be used is named as people did, and not by its number among the pictures of a query."""
    try:
        yield
    except ImageError as error:
        raise ImageError(re.sub(r"^input \d+: ", "", error.message), error.hint) from None


def _query(words: Sequence[str], images: Sequence[str]) -> "Query":
    from cliplet.library.query import Query, Term

    if (len(words) == 1 and '"' not in words[0] and re.search(r"\s[+-]\s", words[0])) or any(
        re.match(r"\+[^\s\d]", word) for word in words
    ):
        print("taken as one sentence; signs of a sum stand alone, outside of quotes: beach + x.jpg", file=sys.stderr)
    terms = list(Query.parse(words).terms) if words else []
    for path in images:
        if not Path(path).expanduser().is_file():
            raise ConfigError(f"{path}: there is no such picture")
        terms.append(Term(1.0, "picture", str(Path(path).expanduser())))
    if not terms:
        raise ConfigError("say what to search for: cliplet search LIBRARY a dog in the snow, or --image x.jpg")
    return Query(tuple(terms))


def duplicates(words: list[str]) -> None:
    """Find pictures of a library that are copies of one another: the same, resized, saved anew, slightly cut."""
    import tyro

    @dataclasses.dataclass
    class Options:
        library: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LIBRARY")]
        """Folder, or lance:URI."""
        alike: float | None = None
        """Group pictures whose features have at least this cosine instead, without a second look at the pictures."""
        json: bool = False
        """Print JSON instead of text (docs/json.md)."""

    options: Options = parse(Options, "duplicates", words, duplicates.__doc__ or "")
    if options.alike is not None and not 0 < options.alike <= 1:
        raise ConfigError(f"--alike is a cosine above 0 and at most 1, got {options.alike:g}")
    from cliplet.console import progress_bar
    from cliplet.library import Library
    from cliplet.library.telling import duplicates_result, duplicates_text

    began = time.monotonic()
    with Library.open(options.library) as library, progress_bar("comparing") as tell:
        groups = library.duplicates(alike=options.alike, tell=tell)
    result = duplicates_result(options.library, groups, time.monotonic() - began)
    print(result.to_json() if options.json else duplicates_text(result))
