"""The verb that turns pictures or sentences into vectors: embed."""

# No `from __future__ import annotations` here, for the same reason as in the package's other verbs.

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cliplet.cli.options import parse, refuse_below
from cliplet.errors import ConfigError

if TYPE_CHECKING:
    from cliplet.embedding import Pictures, Sentences
    from cliplet.results import EmbedSummary

PRINTED_AT_ONCE = 256  # texts
PLAIN = {"-m": "model", **{f"--{name}": name for name in ("text", "model", "engine", "precision", "dims")}}


def embed(words: list[str]) -> None:
    """Turn pictures or sentences into vectors: .npy, .parquet or .lance, in order, and resumable after a kill."""
    plain = plain_options(words)
    if plain:
        _print_vectors(plain.pop("text"), **plain)
        return

    import tyro

    @dataclasses.dataclass
    class Options:
        model: Annotated[str, tyro.conf.arg(aliases=("-m",))]
        """Model or run folder, a name on the hub, or open_clip:ARCHITECTURE/PRETRAINED."""
        files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE_OR_FOLDER...")] = ()
        """Pictures, and folders that are searched for pictures."""
        list: Path | None = None
        """File that names more pictures, one a line or as of find -print0; - is standard input."""
        text: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
        """A sentence to embed instead of pictures; may be given many times."""
        texts: Path | None = None
        """File of sentences, one a line; - is standard input."""
        out: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
        """File to write: .npy, .parquet or .lance. Sentences are printed as JSON lines without it."""
        engine: str = "auto"
        """openvino, onnxruntime or torch; auto takes the fastest that is right."""
        precision: str = "auto"
        """fp32 or bf16; auto takes bf16 only where it is as good."""
        dims: int | None = None
        """Vectors of so many numbers, one of the sizes that were exported."""
        batch_size: int | None = None
        """Pictures that the engine gets at once; by itself what suits it."""
        half: bool = False
        """Vectors in float16, half as large."""
        overwrite: bool = False
        """Replace OUT, whatever it holds."""
        json: bool = False
        """Print JSON instead of text (docs/json.md)."""
        quarantine: Path | None = None
        """Where pictures that could not be read are written down, if there are any, as JSON lines; by itself
        OUT.quarantine.jsonl."""

    options: Options = parse(Options, "embed", words, embed.__doc__ or "")
    refuse_below(dims=(options.dims, 1), batch_size=(options.batch_size, 1))
    inputs = _inputs(options)
    opened = {"engine": options.engine, "precision": options.precision, "dims": options.dims}
    if options.out:
        _write_vectors(options, inputs, opened)
    elif options.json:
        raise ConfigError("--json tells of the file that was written", "Name it with --out.")
    elif options.text or options.texts:
        _print_vectors(inputs, options.model, **opened, batch_size=options.batch_size, half=options.half)
    else:
        raise ConfigError("say where the vectors go: --out FILE.npy, FILE.parquet or FILE.lance")


def plain_options(words: Sequence[str]) -> dict[str, Any]:
    """The options of a call that embeds sentences and has nothing but plain ones; empty for any other.

    It is what one waits for at a prompt, and building the whole command line takes a fifth of that time.
    """
    values: dict[str, Any] = {"text": [], "model": ""}
    if len(words) % 2:
        return {}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        if flag not in PLAIN or value.startswith("-"):
            return {}
        if flag == "--text":
            values["text"].append(value)
        elif flag == "--dims":
            if not value.isdecimal() or not int(value):
                return {}
            values["dims"] = int(value)
        else:
            values[PLAIN[flag]] = value
    return values if values["text"] and values["model"] else {}


def _inputs(options: Any) -> "Pictures | Sentences":
    """The pictures or the sentences that are meant. Raises ConfigError for both, and for neither."""
    from cliplet.embedding.inputs import Sentences, find_pictures, read_list, read_sentences

    if options.text or options.texts:
        if options.files or options.list:
            raise ConfigError("pictures and sentences go into files of their own", "Run the command twice.")
        return Sentences([*options.text, *(read_sentences(options.texts) if options.texts else ())])
    if not (options.files or options.list):
        raise ConfigError("say what to embed: pictures, folders, --list FILE, --text SENTENCE or --texts FILE")
    pictures = find_pictures(options.files, read_list(options.list) if options.list else ())
    for problem in pictures.problems:
        print(f"warning: {problem.where}: {problem.reason}", file=sys.stderr)
    return pictures


def _print_vectors(
    texts: Sequence[str], model: str, *, batch_size: int | None = None, half: bool = False, **opened: Any
) -> None:
    """A JSON line for each sentence, on standard output."""
    import numpy as np

    from cliplet.runtime.encoder import load

    encoder = load(model, lambda message: print(message, file=sys.stderr), **opened)
    for start in range(0, len(texts), PRINTED_AT_ONCE):
        span = list(texts[start : start + PRINTED_AT_ONCE])
        vectors = encoder.encode_text(span, batch_size=batch_size).astype(np.float16 if half else np.float32)
        for text, vector in zip(span, vectors, strict=True):
            # Printed by NumPy, a number has as many digits as tell it from its neighbours, and no more.
            print(f'{{"text": {json.dumps(text)}, "embedding": [{", ".join(map(str, vector))}]}}')


def _write_vectors(options: Any, inputs: "Pictures | Sentences", opened: dict[str, Any]) -> None:
    from cliplet.console import progress_bar, speed_bar
    from cliplet.embedding import embed as embed_all

    quarantine = options.quarantine or Path(f"{options.out}.quarantine.jsonl")
    if quarantine.resolve() == options.out.resolve():
        raise ConfigError(f"{quarantine}: cannot hold the vectors and what has none", "Name another --quarantine.")
    bar = speed_bar if inputs.column == "path" else progress_bar
    with bar("embedding") as tell:
        summary = embed_all(
            inputs,
            options.model,
            options.out,
            **opened,
            batch_size=options.batch_size,
            half=options.half,
            quarantine=quarantine,
            overwrite=options.overwrite,
            tell=tell,
            say=lambda message: print(message, file=sys.stderr),
        )
    print(summary.to_json() if options.json else _told(summary, quarantine))


def _told(summary: "EmbedSummary", quarantine: Path) -> str:
    """The summary for people."""
    from cliplet.console import counted

    if summary.pictures_per_second is None and summary.resumed_from == summary.rows:
        return f"{summary.out} is complete already: {summary.rows:,} rows; nothing was left to compute"
    by = f" by {summary.engine}" if summary.engine else ""
    speed = f", {summary.pictures_per_second:,.0f} a second" if summary.pictures_per_second else ""
    lines = [f"{summary.out}: {summary.rows:,} rows of {summary.dims} numbers in {summary.seconds:,.1f} s{speed}{by}"]
    if summary.failed:
        lines.append(
            f"no vector, because it could not be read: {counted(summary.failed, 'picture')} (see {quarantine})"
        )
    return "\n".join(lines)
