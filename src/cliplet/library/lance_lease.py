"""One writer at a time, for tables in LanceDB as well.

On this machine that is a lock, as for folders (`locks.py`). Object storage has none: there the writer's name stands in
a table of its own, renewed while it works, and a name that was not renewed for a minute counts for nothing. That tells
people who is writing; it is not what keeps the library whole. A writer that stood still so long that another took its
place, or clocks that differ by more than that, make a second writer; then one of the two fails at its next commit
(`lance_tables.py`), and what it had not committed is not in the library.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cliplet.errors import DataError
from cliplet.library.lance_tables import Place, explained, lance_module
from cliplet.library.locks import only_writer

WRITER = "writer"  # the table
RENEWED_EVERY, STALE = 15.0, 60.0  # seconds
ASK_EVERY = 2.0

Say = Callable[[str], None]


@contextmanager
def only_writer_of(place: Place, say: Say, wait: bool) -> Iterator[None]:
    """Holds the library. Where another process does: waits, or raises DataError that says who."""
    if place.folder is not None:
        with only_writer(place.folder, say, wait):
            yield
        return
    lease = _Lease(place)
    said = False
    while holder := lease.taken():
        if not wait:
            raise DataError(
                f"{place.text}: another process is writing to the library: {holder}",
                "Wait for its end, or let this command wait: --wait. "
                f"One that was killed is forgotten after {STALE:.0f} s.",
            )
        if not said:
            say(f"waiting for another process that writes to the library: {holder}")
        said = True
        time.sleep(ASK_EVERY)
    try:
        yield
    finally:
        lease.free()


class _Lease:
    """The name of the writer, in the metadata of a table without rows."""

    def __init__(self, place: Place):
        self.place = place
        self._table: Any = None
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="library lease", daemon=True)
        about = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self._about: dict[str, Any] = about

    def taken(self) -> str:
        """Takes it: "". Or who has it. Raises DataError where the storage cannot be read."""
        lance = lance_module()
        try:
            self._table = lance.dataset(self.place.table(WRITER), storage_options=self.place.options or None)
        except ValueError:
            self._table = None  # nobody ever wrote
        holder = _holder(self._table)
        seen = float(holder.get("seen", 0.0))
        if holder and time.time() - seen < STALE:
            name = f"process {holder.get('process')} on {holder.get('host')}, since {holder.get('since')}"
            return f"{name}, last heard of {max(time.time() - seen, 0):.0f} s ago"
        if not self._write(self._about | {"seen": time.time()}):
            return "it has just begun"
        self._renewing.start()
        return ""

    def free(self) -> None:
        """Lets others take it."""
        self._ended.set()
        self._renewing.join()
        with suppress(Exception):  # it is forgotten by itself
            self._write({})

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_EVERY):
            with suppress(Exception):  # of a storage that is away for a moment; commits find out by themselves
                if not self._write(self._about | {"seen": time.time()}):
                    return

    def _write(self, about: dict[str, Any]) -> bool:
        """Whether it could be written on what was read before."""
        import pyarrow as pa

        lance = lance_module()
        schema = pa.schema([pa.field("nothing", pa.bool_())], metadata={b"writer": json.dumps(about).encode()})
        operation = lance.LanceOperation.Overwrite(schema, [])
        with explained(self.place.text):
            try:
                if self._table is None:
                    made = lance.LanceDataset.commit(
                        self.place.table(WRITER), operation, max_retries=0, storage_options=self.place.options or None
                    )
                else:
                    made = lance.LanceDataset.commit(
                        self._table, operation, read_version=self._table.version, max_retries=0
                    )
            except lance.commit.CommitConflictError:
                return False
        self._table = made
        return True


def _holder(table: Any) -> dict[str, Any]:
    with suppress(KeyError, ValueError, TypeError, AttributeError):
        return dict(json.loads(table.schema.metadata[b"writer"]))
    return {}
