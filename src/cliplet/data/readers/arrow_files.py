"""Arrow files and arrays, which may be damaged: their batches and values, and how long pictures are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from cliplet.data.places import ARROW_FILE, arrow_batches
from cliplet.data.readers.collector import Collector
from cliplet.errors import DataError

END_MARK = b"\xff\xff\xff\xff\0\0\0\0"  # the last bytes of an Arrow stream that was closed
CUT_SHORT = "If it was copied or downloaded, it may be cut short."


def whole_batches(file: str, collector: Collector) -> Iterator[Any]:
    """The file's batches. Raises DataError for a file that is damaged; one that may lack its end is a problem."""
    import pyarrow as pa

    try:
        yield from arrow_batches(file)
        with open(file, "rb") as stream:
            is_stream = stream.read(len(ARROW_FILE)) != ARROW_FILE
            stream.seek(-len(END_MARK), os.SEEK_END)
            if is_stream and stream.read() != END_MARK:
                collector.problem(file, "ends without an end mark; it may be cut short")
    except (pa.ArrowException, ValueError, OSError) as error:
        raise _damaged(file, error) from None


def check_bounds(batch: Any, where: str) -> None:
    """Raises DataError where a text or picture would begin or end outside of the file: reading it might crash."""
    import pyarrow as pa

    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise _damaged(where, error) from None
            _check_bounds_only(column, where)  # of texts that are not UTF-8 one row is bad and no more


def _check_bounds_only(column: Any, where: str) -> None:
    import pyarrow as pa

    try:
        column.cast(_without_text(column.type)).validate(full=True)
    except pa.ArrowException as error:
        raise _damaged(where, error) from None


def _without_text(kind: Any) -> Any:
    """The type with bytes in the place of texts, of which any are valid."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _without_text(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_without_text(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_without_text(kind.value_type))
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    return pa.binary() if is_text(kind) else kind


def _damaged(file: str, error: Exception) -> DataError:
    return DataError(f"{file}: cannot be read as Arrow: {' '.join(str(error).split())}", CUT_SHORT)


def pictures(column: Any) -> tuple[list[int | None], list[str | None]]:
    """Of each picture how many bytes are embedded, None without any, and its path. No bytes are read."""
    import pyarrow.compute as pc
    from pyarrow import types

    nothing: list[Any] = [None] * len(column)
    if is_text(column.type):
        return nothing, _paths(column)
    if not types.is_struct(column.type):
        return _sizes(column), nothing
    # `struct_field` minds that a struct is null, which its fields by themselves do not say
    has_bytes, has_path = (column.type.get_field_index(name) >= 0 for name in ("bytes", "path"))
    sizes = _sizes(pc.struct_field(column, "bytes")) if has_bytes else nothing
    return sizes, _paths(pc.struct_field(column, "path")) if has_path and None in sizes else nothing


def _sizes(column: Any) -> list[int | None]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(column.type):
        return [None] * len(column)
    if pa.types.is_binary_view(column.type):
        column = column.cast(pa.large_binary())
    return pc.binary_length(column).to_pylist()


def _paths(column: Any) -> list[str | None]:
    return [value if isinstance(value, str) else None for value in values(column)]


def values(column: Any) -> list[Any]:
    """The column's values; bytes for one with a text that is not UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(cell) for cell in column]


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return b""


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is one of texts."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def is_picture(kind: Any) -> bool:
    """Whether it is one of bytes, or a struct of bytes and path, or of one of them."""
    from pyarrow import types

    if not types.is_struct(kind):
        return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    inner = {field.name: field.type for field in kind}
    return ("bytes" in inner and is_picture(inner["bytes"])) or ("path" in inner and is_text(inner["path"]))


def is_caption(kind: Any, keys: tuple[str, ...]) -> bool:
    """Whether it is one of texts, of structs with one of `keys`, or of lists of these."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    return is_text(kind) or (types.is_struct(kind) and any(kind.get_field_index(key) >= 0 for key in keys))
