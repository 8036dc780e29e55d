"""The verb that serves libraries over HTTP, with a page: serve."""

# No `from __future__ import annotations` here, for the same reason as in the package's other verbs.

import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cliplet.cli.options import parse
from cliplet.errors import ConfigError

if TYPE_CHECKING:
    from cliplet.library.library import Library
    from cliplet.serve.server import Ended

ENDING = ".library"
TOKEN_VARIABLE = "CLIPLET_TOKEN"
INTERRUPTED = 130
READING = {"quick", "files"}  # threads that may be at the libraries' files


def serve(words: list[str]) -> None:
    """Serve libraries over HTTP, to programs and to a page for people. On this machine alone, unless told otherwise."""
    import tyro

    @dataclasses.dataclass
    class Options:
        libraries: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="LIBRARY...")]
        """Libraries: folders, or lance:URI. NAME=LIBRARY gives one another name than its folder's."""
        host: str = "127.0.0.1"
        """Address to listen at. Others than this machine's own are asked for a token."""
        port: int = 8300
        """Port to listen at; 0 is any that is free."""
        token: str = ""
        """What clients have to show; better given as CLIPLET_TOKEN, for others see what is typed here. Made and printed
        where it is needed and not given."""
        name: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
        """Name by which others ask through a proxy that ends TLS, photos.example.org say; may be given several times.
        Asks for a token."""
        engine: str = "auto"
        """openvino, onnxruntime or torch; by itself what computed the vectors."""
        rate: float = 200.0
        """Requests a second of one client; 0 is as many as come."""
        open: bool = False
        """Show the page in a browser."""
        log: bool = False
        """A line for each request, on standard error."""

    options: Options = parse(Options, "serve", words, serve.__doc__ or "")
    places = named_places(options.libraries)
    from cliplet.serve.settings import Settings

    settings = Settings(
        host=options.host,
        port=options.port,
        token=options.token or os.environ.get(TOKEN_VARIABLE, ""),
        names=options.name,
        rate=options.rate,
        log=options.log,
    )
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as opener:
        opening = opener.submit(_opened, places, options.engine, stack)  # while what serves them is imported
        from cliplet.serve import server

        ended = server.run(opening.result(), settings, _say, _show if options.open else lambda address: None)
        if ended.still_runs:
            _leave(ended, stack)
    if ended.interrupted:
        raise KeyboardInterrupt


def _leave(ended: "Ended", stack: contextlib.ExitStack) -> None:
    """Ends the process with threads that still run, which Python would wait for however long they take."""
    if not READING & set(ended.still_runs):
        stack.close()  # else it would be closed below whoever reads it; it is read alone, and no harm comes to it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED if ended.interrupted else 0)


def named_places(words: Sequence[str]) -> dict[str, str]:
    """Where libraries are, by name: `photos.library` is photos, `holidays=/mnt/photos.library` is holidays.

    Raises ConfigError for two of one name, and for none.
    """
    if not words:
        raise ConfigError("say what to serve: cliplet serve LIBRARY", "Make one with: cliplet index FOLDER.")
    places: dict[str, str] = {}
    for word in words:
        name, equals, place = word.partition("=")
        if not equals or "/" in name or Path(word).exists():
            name, place = _name_of(word), word
        if not name or not place:
            raise ConfigError(f"{word}: is no library", "Name it as LIBRARY, or NAME=LIBRARY.")
        if name in places:
            raise ConfigError(
                f"two libraries have the name {name}: {places[name]} and {place}", f"Name one: NAME={place}."
            )
        places[name] = place
    return places


def _name_of(place: str) -> str:
    """The last part of a place, without `.library` or another ending of a table."""
    last = Path(place.rstrip("/\\").rpartition(":")[2] if place.startswith("lance:") else Path(place).absolute()).name
    for ending in (ENDING, ".lance"):
        last = last.removesuffix(ending) or last
    return last


def _opened(places: dict[str, str], engine: str, stack: contextlib.ExitStack) -> "dict[str, Library]":
    """The libraries, which are closed with `stack`, and their models, so that nobody waits for them later. Libraries
    with vectors of the same model share it."""
    from cliplet.library.library import Library

    libraries: dict[str, Library] = {}
    for name, place in places.items():
        library = stack.enter_context(Library.open(place, engine=engine))
        alike = [other for other in libraries.values() if _same_model(library, other)]
        libraries[name] = Library(library.store, alike[0].encoder if alike else library.encoder, engine)
    return libraries


def _same_model(one: "Library", other: "Library") -> bool:
    return one.identity is not None and other.identity is not None and one.identity.same_vectors(other.identity)


def _say(message: str) -> None:
    print(message, flush=True)


def _show(address: str) -> None:
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
