"""One writer at a time, and who it is."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cliplet.errors import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "writer.lock"
ASK_EVERY = 0.2  # seconds


class Busy(DataError):
    """Another process writes to the library."""


@contextmanager
def only_writer(folder: Path, say: Callable[[str], None], wait: bool) -> Iterator[None]:
    """Holds the folder's lock. Where another process has it: waits, or raises Busy that says who. It is gone with its
    holder, however that ends."""
    file = folder / LOCK
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _taken(handle):
            holder = _holder(file)
            if not wait:
                raise Busy(
                    f"{folder}: another process is writing to the library: {holder}",
                    "Wait for its end, or let this command wait: --wait.",
                )
            say(f"waiting for another process that writes to the library: {holder}")
            while not _taken(handle):
                time.sleep(ASK_EVERY)
        about = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):  # a full disk: it is only told to whoever asks
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, json.dumps(about).encode())
        yield
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    """Whether the lock is this process's now."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            os.lseek(handle, 2**30, os.SEEK_SET)  # beyond what is read of it
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _holder(file: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads(file.read_text())
        return f"process {about['process']} on {about['host']}, since {about['since']}"
    return "process unknown"
