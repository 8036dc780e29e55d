"""The rows of a job as a file that others read: .npy with its names beside it, .parquet, or a Lance dataset.

Each is made in the work folder, from its files and block by block, and then put in its place.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cliplet import __version__
from cliplet.data.records import writable
from cliplet.embedding.inputs import Inputs
from cliplet.embedding.work import ABOUT, DATASET, FEATURES, NAMES, OLD, TABLE, Job, Work
from cliplet.errors import INSTALL_SCALE, ConfigError, DataError, ModelError
from cliplet.files import flush, refuse_unwritable

FORMAT, FORMAT_VERSION = "cliplet-vectors", 1
KEY = b"cliplet"  # of what a table says of itself
NEEDS = {".npy": (), ".parquet": ("pyarrow",), ".lance": ("pyarrow", "lance")}
NAMES_ENDING, ABOUT_ENDING = ".names.jsonl", ".json"
BLOCK_BYTES = 2**24  # of vectors in memory at once, and in a row group


class Product(NamedTuple):
    """A file or folder, where it is made and where it belongs."""

    made: Path
    place: Path


def refuse_out(out: Path) -> None:
    """Raises before any work where `out` cannot become a file of vectors: ConfigError for its ending, ModelError for a
    package that is not installed, DataError for something else in its place, OSError where nothing can be written."""
    ending = out.suffix.lower()
    if ending not in NEEDS:
        raise ConfigError(f"{out}: vectors go into a file that ends in .npy, .parquet or .lance")
    for package in NEEDS[ending]:
        if importlib.util.find_spec(package) is None:
            raise ModelError(f"writing {ending} needs the package {package}, which is not installed", INSTALL_SCALE)
    if ending == ".lance" and out.exists():
        if not (out / "_versions").is_dir():
            raise DataError(f"{out}: is there and is no Lance dataset", "Name another place.")
        refuse_unwritable(out.with_suffix(".npy"))
    else:
        refuse_unwritable(out)


def products(out: Path, folder: Path) -> list[Product]:
    """What is put in its place at the end, in that order; the last one tells that all is there."""
    if out.suffix.lower() == ".parquet":
        return [Product(folder / TABLE, out)]
    if out.suffix.lower() == ".lance":
        return [Product(folder / DATASET, out)]
    names, about = (out.with_name(out.name + ending) for ending in (NAMES_ENDING, ABOUT_ENDING))
    return [Product(folder / NAMES, names), Product(folder / FEATURES, out), Product(folder / ABOUT, about)]


def finished(out: Path, job: Job) -> dict[str, Any] | None:
    """What a file of vectors says of itself, where it is whole and of this job; None otherwise."""
    try:
        about, rows = _read(out)
        whole = about["format"] == FORMAT and about["format_version"] == FORMAT_VERSION and rows == job.rows
        return about if whole and not job.differences(about["job"]) else None
    except Exception:  # damaged files fail in many ways, each of which means the same
        return None


def refuse_occupied(out: Path) -> None:
    """Raises DataError where something stands that would be overwritten."""
    for _, place in products(out, out.parent):
        if place.exists():
            raise DataError(
                f"{place}: is there already, and is not what this command would write",
                "Name another file, or replace it with --overwrite.",
            )


def make(out: Path, work: Work, inputs: Inputs, model: str) -> None:
    """Makes all products in the work folder. Raises OSError where the disk is full."""
    about = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "cliplet": __version__,
        "model": writable(model),
        "failed": work.done.failed,
        "job": asdict(work.job),
    }
    if out.suffix.lower() == ".parquet":
        _make_parquet(work, inputs, about)
    elif out.suffix.lower() == ".lance":
        _make_lance(work, inputs, about)
    else:
        _make_names(work, inputs)
        (work.folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    for made, _ in products(out, work.folder):
        for file in made.rglob("*") if made.is_dir() else [made]:
            flush(file)


def place(out: Path, folder: Path) -> None:
    """Puts the products in their places; those are passed over that a killed command had put there."""
    remaining = [product for product in products(out, folder) if product.made.exists()]
    if len(remaining) > 1:
        remaining[-1].place.unlink(missing_ok=True)  # of an earlier file, and not of the one to come
    for made, target in remaining:
        if made.is_dir():
            shutil.rmtree(folder / OLD, ignore_errors=True)
            with suppress(FileNotFoundError):
                target.rename(folder / OLD)
        made.replace(target)
    flush(out.parent)
    shutil.rmtree(folder / OLD, ignore_errors=True)


def _read(out: Path) -> tuple[dict[str, Any], int]:
    """What the file says of itself, and its rows."""
    if out.suffix.lower() == ".parquet":
        import pyarrow.parquet

        metadata = pyarrow.parquet.read_metadata(out)
        return json.loads(metadata.metadata[KEY]), metadata.num_rows
    if out.suffix.lower() == ".lance":
        import lance

        dataset = lance.dataset(str(out))
        return json.loads(dataset.schema.metadata[KEY]), dataset.count_rows()
    names, features, about = products(out, out.parent)
    said = json.loads(about.place.read_text(encoding="utf-8"))
    rows, dims = np.load(features.place, mmap_mode="r", allow_pickle=False).shape
    return said, rows if names.place.is_file() and dims == said["job"]["dims"] else -1


def _rows_with_errors(work: Work, inputs: Inputs, block: int) -> Iterator[tuple[list[str], list[str | None]]]:
    """Names and errors of the rows, in blocks."""
    errors = work.errors()
    bad = next(errors, None)
    for start in range(0, work.done.rows, block):
        rows = range(start, min(start + block, work.done.rows))
        reasons: list[str | None] = [None] * len(rows)
        while bad and bad[0] in rows:
            reasons[bad[0] - start] = bad[1]
            bad = next(errors, None)
        yield [inputs[row] for row in rows], reasons


def _make_names(work: Work, inputs: Inputs) -> None:
    with (work.folder / NAMES).open("wb") as stream:
        for names, errors in _rows_with_errors(work, inputs, 4096):
            for name, error in zip(names, errors, strict=True):
                entry = {inputs.column: name} if error is None else {inputs.column: name, "error": error}
                # A name that is not UTF-8 is written as the escapes that JSON has for it.
                stream.write(json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")


def _schema(job: Job, about: dict[str, Any], fixed: bool) -> Any:
    """Columns; `fixed`: with lists of fixed size, in which Lance searches. Of such lists pyarrow before 26 cannot read
    nulls from Parquet."""
    import pyarrow as pa

    vector = pa.list_(pa.float16() if job.half else pa.float32(), job.dims if fixed else -1)
    columns = [pa.field(job.column, pa.string(), nullable=False), ("embedding", vector), ("error", pa.string())]
    return pa.schema(columns, metadata={KEY: json.dumps(about).encode()})


def _record_batches(work: Work, inputs: Inputs, schema: Any) -> Iterator[Any]:
    import pyarrow as pa

    rows = max(256, BLOCK_BYTES // (work.job.dims * work.job.dtype.itemsize))
    blocks = zip(work.blocks(rows), _rows_with_errors(work, inputs, rows), strict=True)
    for features_BD, (names, errors) in blocks:
        missing = pa.array([error is not None for error in errors])
        flat, kind = pa.array(features_BD.reshape(-1)), schema.field("embedding").type
        if pa.types.is_fixed_size_list(kind):
            vectors = pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=missing)
        else:
            bounds = pa.array(np.arange(len(errors) + 1, dtype=np.int32) * work.job.dims)
            vectors = pa.ListArray.from_arrays(bounds, flat, type=kind, mask=missing)
        columns = [pa.array([writable(name) for name in names]), vectors, pa.array(errors, pa.string())]
        yield pa.record_batch(columns, schema=schema)


def _make_parquet(work: Work, inputs: Inputs, about: dict[str, Any]) -> None:
    import pyarrow.parquet

    schema = _schema(work.job, about, fixed=False)
    squeezed = dict.fromkeys((work.job.column, "error"), "zstd")  # vectors are noise to a compressor
    file = str(work.folder / TABLE)
    with pyarrow.parquet.ParquetWriter(file, schema, compression=squeezed, use_dictionary=False) as writer:
        for batch in _record_batches(work, inputs, schema):
            writer.write_batch(batch, row_group_size=len(batch))


def _make_lance(work: Work, inputs: Inputs, about: dict[str, Any]) -> None:
    import lance
    import pyarrow

    folder = work.folder / DATASET
    shutil.rmtree(folder, ignore_errors=True)
    schema = _schema(work.job, about, fixed=True)
    batches = pyarrow.RecordBatchReader.from_batches(schema, _record_batches(work, inputs, schema))
    lance.write_dataset(batches, str(folder.resolve()))
