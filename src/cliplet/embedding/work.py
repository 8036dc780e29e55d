"""What is computed of a file of vectors so far, in a folder beside it: a killed command loses seconds of its work.

OUT.partial/
  job.json        what decides the numbers: model, engine, inputs
  features.npy    the rows so far, under the head of the whole array
  failed.jsonl    rows that have no vector, and why
  done.jsonl      how many rows, and bytes of failed.jsonl, are on the disk for sure; a line each few seconds
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from cliplet.errors import DataError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two commands from writing the same file
    fcntl = None  # type: ignore[assignment]

FORMAT, FORMAT_VERSION = "cliplet-embed-work", 1
PARTIAL = ".partial"
JOB, FEATURES, FAILED, NOTED = "job.json", "features.npy", "failed.jsonl", "done.jsonl"
NEW_JOB = "job.json.new"
NAMES, ABOUT, TABLE, DATASET, OLD = "names.jsonl", "about.json", "table.parquet", "dataset.lance", "old.lance"
OURS = {JOB, FEATURES, FAILED, NOTED, NEW_JOB, NAMES, ABOUT, TABLE, DATASET, OLD}
SAVE_SECONDS = 3.0


class Interrupted(DataError):
    """Ctrl-C. What is done stays."""


@dataclass(frozen=True)
class Job:
    """What decides which numbers a file of vectors holds."""

    model: dict[str, str]  # sha256 of its files
    engine: str
    dims: int
    half: bool
    column: str  # path or text
    rows: int
    inputs: str  # their fingerprint

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float16 if self.half else np.float32)

    def differences(self, other: dict[str, Any]) -> list[str]:
        """What is different in another one, as it stands in JSON; for people."""
        mine = asdict(self)
        named = {"model": "another model", "engine": "another engine", "dims": "other dimensions"}
        named["half"] = "another precision of the vectors"
        differing = [name for name in mine if mine[name] != other.get(name)]
        return list(dict.fromkeys(named.get(name, "other inputs") for name in differing))


@contextmanager
def alone(out: Path) -> Iterator[Path]:
    """The folder beside `out`, made, with no other process in it; gone afterwards if it is empty.

    Raises DataError where another process is writing the same file, or where something else stands in that place.
    """
    folder = out.with_name(out.name + PARTIAL)
    with _locked(folder, out):
        try:
            yield folder
        finally:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    while True:
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            raise DataError(f"{folder}: is a file, where work on {out.name} is kept", "Move it away.") from None
        if fcntl is None:
            yield
            return
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # its owner came to the end just now
            continue
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"{out}: another command is writing it", "Wait for its end.") from None
            except OSError:  # a file system without locks
                pass
            if not _same(handle, folder):
                continue
            yield
            return
        finally:
            os.close(handle)


def _same(handle: int, folder: Path) -> bool:
    """Whether the folder that is open is the one of that name; its owner may have removed it before it was locked."""
    try:
        return os.path.samestat(os.fstat(handle), folder.stat())
    except FileNotFoundError:
        return False


class Done(NamedTuple):
    """How far a job is."""

    rows: int = 0
    failed: int = 0  # of these rows
    bytes: int = 0  # of failed.jsonl


class Work:
    """The rows of a job so far. N rows in all, D dims. Begin it, append blocks, close it."""

    def __init__(self, folder: Path, job: Job):
        """Looks at what is there. Raises DataError where it is none of cliplet's."""
        self.folder, self.job = folder, job
        self.done = Done()
        self.placing = False  # whether all is computed and is being put in its place
        earlier = self._earlier_job() if any(folder.iterdir()) else None
        self.differing = job.differences(earlier) if earlier else []
        self.resumes = earlier is not None and not self.differing
        if self.resumes:
            lines = _whole_lines(folder / NOTED)
            self.placing = bool(lines) and bool(lines[-1].get("placing"))
            fitting = [one for one in lines if self.placing or self._is_there(one)]
            if fitting:
                self.done = Done(*(fitting[-1][name] for name in Done._fields))
        self._saved = time.monotonic()
        self._features: BinaryIO | None = None
        self._failed: BinaryIO
        self._noted: BinaryIO

    def begin(self) -> None:
        """Opens what is there of the same job; anything else that cliplet put there is removed. Raises OSError."""
        if not self.resumes:
            self.clear()
            content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self.job)}
            (self.folder / NEW_JOB).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            (self.folder / NEW_JOB).replace(self.folder / JOB)
        self._features, self._failed, self._noted = (self._opened(name) for name in (FEATURES, FAILED, NOTED))
        self._features.truncate(self._size(self.done.rows) if self.done.rows else 0)
        self._failed.truncate(self.done.bytes)
        for stream in (self._features, self._failed, self._noted):
            stream.seek(0, os.SEEK_END)
        if not self.done.rows:
            _write(self._features, npy_head(self.job))
        _write(self._noted, b"\n")  # ends a line that a kill has torn; empty ones are passed over
        self.save()

    def append(self, features_BD: np.ndarray, failed: dict[int, str]) -> None:
        """The next B rows. `failed`: why some of them, by place in the block, have none. Raises OSError."""
        assert self._features is not None
        _write(self._features, np.ascontiguousarray(features_BD, dtype=self.job.dtype).tobytes())
        lines = b""
        for row in sorted(failed):
            line = json.dumps({"row": self.done.rows + row, "error": failed[row]}, ensure_ascii=False)
            lines += line.encode("utf-8", "backslashreplace") + b"\n"
        _write(self._failed, lines)
        rows, bad, size = self.done
        self.done = Done(rows + len(features_BD), bad + len(failed), size + len(lines))
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self, placing: bool = False) -> None:
        """Brings all rows so far to the disk, and notes that they are there. Raises OSError."""
        assert self._features is not None
        for stream in (self._features, self._failed):
            os.fsync(stream.fileno())
        line = {**self.done._asdict(), "placing": placing}
        _write(self._noted, json.dumps(line).encode() + b"\n")
        os.fsync(self._noted.fileno())
        self.placing = placing
        self._saved = time.monotonic()

    def close(self) -> None:
        """Closes the files; nothing is written."""
        if self._features is not None:
            for stream in (self._features, self._failed, self._noted):
                stream.close()
            self._features = None

    def errors(self) -> Iterator[tuple[int, str]]:
        """Rows that have no vector, and why; in order."""
        with open(self.folder / FAILED, encoding="utf-8") as stream:
            for line in stream:
                entry = json.loads(line)
                yield entry["row"], entry["error"]

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """The rows so far, in blocks of `rows`."""
        with open(self.folder / FEATURES, "rb") as stream:
            stream.seek(len(npy_head(self.job)))
            for start in range(0, self.done.rows, rows):
                count = min(rows, self.done.rows - start)
                block = np.fromfile(stream, dtype=self.job.dtype, count=count * self.job.dims)
                yield block.reshape(count, self.job.dims)

    def clear(self) -> None:
        """Removes what cliplet put there, and nothing else."""
        self.close()
        for name in OURS - {JOB}:
            if (self.folder / name).is_dir():
                shutil.rmtree(self.folder / name)
            else:
                (self.folder / name).unlink(missing_ok=True)
        (self.folder / JOB).unlink(missing_ok=True)  # last: without it the rest would be nobody's

    def tidy(self) -> None:
        """Removes what was left of this very job by a kill at its end."""
        if self.resumes:
            self.clear()

    def _size(self, rows: int) -> int:
        """Bytes of features.npy with so many rows."""
        return len(npy_head(self.job)) + rows * self.job.dims * self.job.dtype.itemsize

    def _is_there(self, noted: dict[str, Any]) -> bool:
        """Whether the files are as long as a line of done.jsonl says."""
        needed = {FEATURES: self._size(noted["rows"]), FAILED: noted["bytes"]}
        with suppress(OSError):
            return all((self.folder / name).stat().st_size >= size for name, size in needed.items())
        return False

    def _opened(self, name: str) -> BinaryIO:
        # Not buffered: what a full disk refused must not be tried again when the file is closed.
        return os.fdopen(os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)

    def _earlier_job(self) -> dict[str, Any]:
        """job.json. Raises DataError where the folder is not one of this work."""
        names = {file.name for file in self.folder.iterdir()}
        if names == {NEW_JOB}:  # killed at the first moment
            return asdict(self.job)
        try:
            content = json.loads((self.folder / JOB).read_text(encoding="utf-8"))
            if not names <= OURS or content["format"] != FORMAT or content["format_version"] != FORMAT_VERSION:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(
                f"{self.folder}: is there, and not as this cliplet left it; nothing in it was touched",
                "Move it away, or write to another file.",
            ) from None
        return content


def npy_head(job: Job) -> bytes:
    """What an .npy file of the job begins with."""
    head = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(job.dtype)
    fields = {"descr": descr, "fortran_order": False, "shape": (job.rows, job.dims)}
    np.lib.format.write_array_header_1_0(head, fields)
    return head.getvalue()


def _write(stream: BinaryIO, data: bytes) -> None:
    """All of it: an unbuffered file takes less where the disk is nearly full. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of done.jsonl that a kill has not torn."""
    lines = []
    with suppress(FileNotFoundError):
        for line in file.read_bytes().split(b"\n"):
            with suppress(ValueError, TypeError):
                entry = json.loads(line)
                if all(isinstance(entry.get(name), int) for name in Done._fields):
                    lines.append(entry)
    return lines
