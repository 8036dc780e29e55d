"""Whether an approximate index of a library in LanceDB is to be made, or lacks rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cliplet.library import lance_care
from cliplet.library.lance_changes import Table
from cliplet.library.lance_tables import CAPTIONS, PICTURES


def index_is_due(tables: Mapping[str, Table], search: Mapping[str, Any]) -> bool:
    """`search`: how each index is asked (`lance_care.care`), nothing for one that was never made."""
    return any(_is_due(tables[name], name in search) for name in (PICTURES, CAPTIONS))


def _is_due(table: Table, made: bool) -> bool:
    least = lance_care.INDEXED_FROM if table.place.folder is not None else lance_care.REMOTE_INDEXED_FROM
    if len(table) < least:
        return False
    if not made or not any(list(one.field_names) == ["vector"] for one in table.dataset.describe_indices()):
        return True
    return int(table.dataset.index_statistics(lance_care.INDEX)["num_unindexed_rows"]) > 0
