"""What this machine remembers from one process to the next, to start faster. All of it may be deleted at any time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from typing import Any

from cliplet.files import cache_folder


class State:
    """One remembered value, under everything that it depends on. Where nothing can be written, nothing is kept."""

    def __init__(self, key: str):
        self._file = (
            cache_folder() / "state" / f"{hashlib.sha256(key.encode('utf-8', 'replace')).hexdigest()[:32]}.json"
        )

    def read(self) -> Any:
        """The value; None where there is none, or it cannot be read."""
        try:
            return json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, value: Any) -> None:
        """Keeps the value, whole or not at all."""
        beside = self._file.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(value), encoding="utf-8")
            beside.replace(self._file)
