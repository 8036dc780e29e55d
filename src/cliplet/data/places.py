"""Where a picture's bytes are: in a file of its own, in a tar shard, or in a row of an Arrow file. No torch.

A place is a text, so that it can stand in a record, a log and a quarantine file:

    photos/a.jpg
    shards/00000.tar?offset=1536&size=20480&name=000000012.jpg
    cache/data-00000.arrow?row=17&column=image
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from cliplet.errors import ImageError

# The first place that fits ends the file's name: a member's name may hold anything, also what looks like a place.
TAR_MEMBER = re.compile(
    r"(?P<file>.+?(?i:\.tar))\?offset=(?P<offset>\d{1,18})&size=(?P<size>\d{1,18})&name=(?P<name>.*)", re.DOTALL
)
ARROW_ROW = re.compile(r"(?P<file>.+?(?i:\.arrow))\?row=(?P<row>\d{1,18})&column=(?P<column>.*)", re.DOTALL)
ARROW_FILE = b"ARROW1"  # what an IPC file begins with; an IPC stream has no such mark


def tar_member(file: str, name: str, offset: int, size: int) -> str:
    """The place of a picture in an uncompressed tar: its member's name, and where its bytes begin and how many."""
    return f"{file}?offset={offset}&size={size}&name={name}"


def arrow_row(file: str, row: int, column: str) -> str:
    """The place of a picture in an Arrow file: the file's row, in a column of bytes or of structs with `bytes`."""
    return f"{file}?row={row}&column={column}"


def file_name(place: str) -> str:
    """A picture's own name: the file's, the member's in a tar, or the one in the `path` beside it in an Arrow row.

    A row without a path is named by its file and number.
    """
    if "?" in place:
        if member := TAR_MEMBER.fullmatch(place):
            place = member["name"]
        elif cell := ARROW_ROW.fullmatch(place):
            name = _arrow_path(cell["file"], int(cell["row"]), cell["column"]).rpartition("/")[2]
            place = name or place
    return place.rpartition("/")[2]


def read_bytes(place: str | Path, limit: int) -> bytes:
    """The encoded picture at a place.

    Raises ImageError for what is not there or must not be read, and for what is empty, larger than `limit` bytes, cut
    off or a folder.
    """
    text = str(place)
    try:
        return _read(text, limit)
    except FileNotFoundError:
        raise ImageError(f"{text}: no such file") from None
    except (OSError, ValueError, LookupError) as error:  # a name that no system takes; no such row or column
        raise ImageError(f"{text}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _read(text: str, limit: int) -> bytes:
    if "?" in text:
        try:
            if member := TAR_MEMBER.fullmatch(text):
                return _tar_bytes(text, member["file"], int(member["offset"]), int(member["size"]), limit)
            if cell := ARROW_ROW.fullmatch(text):
                return _checked(text, _arrow_bytes(cell["file"], int(cell["row"]), cell["column"]), limit)
        except FileNotFoundError:
            if not os.path.isfile(text):  # a file's name may look like a place
                raise
    return _file_bytes(text, limit)


def exists(place: str) -> bool:
    """Whether the file is there that holds the picture."""
    match = (TAR_MEMBER.fullmatch(place) or ARROW_ROW.fullmatch(place)) if "?" in place else None
    return bool(match and os.path.isfile(match["file"])) or os.path.isfile(place)


def _file_bytes(path: str, limit: int) -> bytes:
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{path}: is a folder, not a picture")
    _check_size(path, status.st_size, limit)  # a pipe or device has none, and is never opened
    with open(path, "rb", buffering=0) as stream:
        return stream.read()


def _check_size(name: str, size: int, limit: int) -> None:
    if size == 0:
        raise ImageError(f"{name}: the file is empty")
    if size > limit:
        raise ImageError(f"{name}: {size / 2**20:.0f} MB, over the limit of {limit / 2**20:.0f} MB")


def _checked(name: str, data: bytes, limit: int) -> bytes:
    _check_size(name, len(data), limit)
    return data


def _tar_bytes(place: str, file: str, offset: int, size: int, limit: int) -> bytes:
    _check_size(place, size, limit)
    if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe would be waited for
        raise ImageError(f"{place}: its shard is no file")
    with open(file, "rb") as stream:  # opened anew: shards may be many, open files may not
        stream.seek(offset)
        data = stream.read(size)
    if len(data) < size:
        raise ImageError(f"{place}: the shard ends before it")
    return data


def _arrow_bytes(file: str, row: int, column: str) -> bytes:
    cell = _arrow_table(file).column(column)[row].as_py()
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise ImageError(f"{arrow_row(file, row, column)}: holds no picture")
    return data


def _arrow_path(file: str, row: int, column: str) -> str:
    """What stands as `path` beside a row's bytes; "" where there is nothing."""
    paths = _arrow_paths(file, column)
    path = paths[row].as_py() if paths is not None and row < len(paths) else None
    return path if isinstance(path, str) else ""


@lru_cache(maxsize=1024)
def _arrow_paths(file: str, column: str) -> Any:
    """The paths of all rows, as an Arrow array; None where there are none, or none that can be read."""
    try:
        import pyarrow.compute as pc

        paths = pc.struct_field(_arrow_table(file).column(column), "path")
        paths.validate(full=True)
        return paths.combine_chunks()
    except (ImportError, OSError, ValueError, TypeError, LookupError, NotImplementedError):
        return None


@lru_cache(maxsize=1024)  # a table takes no open file, and a large data set has hundreds
def _arrow_table(file: str) -> Any:
    import pyarrow

    return pyarrow.Table.from_batches(list(arrow_batches(file)))  # stays on the disk until rows are read


def arrow_batches(file: str) -> Iterator[Any]:
    """The record batches of an Arrow file, an IPC stream or an IPC file, mapped and not read.

    Raises pyarrow.ArrowInvalid or OSError for what is no Arrow file, or cut short.
    """
    import pyarrow

    source = pyarrow.memory_map(file)
    if source.read(len(ARROW_FILE)) == ARROW_FILE:
        reader = pyarrow.ipc.open_file(source)
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        source.seek(0)
        yield from pyarrow.ipc.open_stream(source)
