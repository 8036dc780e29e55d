"""A worker of `cliplet index --workers ray`, on whatever machine: it reads, embeds and writes files of the table.

The files belong to the table only once the driver says so (`bulk.py`). So a block of pictures that is done twice, since
a worker was lost in between, is in the library once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cliplet import model_folder
from cliplet.errors import ClipletError, ModelError
from cliplet.files import cache_folder
from cliplet.library.indexing import read_file
from cliplet.library.lance_changes import written
from cliplet.library.lance_rows import Before, picture_row, pictures_table
from cliplet.library.lance_tables import Place, reason
from cliplet.library.records import joined, listed
from cliplet.library.store import Entry

if TYPE_CHECKING:
    from cliplet.library.batch import FileRead
    from cliplet.runtime.encoder import Encoder


class Task(NamedTuple):
    """A file to read."""

    number: int  # among all of the run
    path: str
    id: int  # that its picture is to have
    plain: bool  # whether its row can go to the table as it is; else it goes to the driver
    captions: tuple[str, ...] | None  # that are given; None: the file's own, or those before
    before: Before | None


@dataclass(frozen=True)
class Model:
    """The model of a run, and how it comes to a worker."""

    folder: str  # on the driver's machine
    hashes: dict[str, str]  # of what decides its features
    engine: str
    precision: str
    dims: int | None
    exact: bool  # whether another engine will do
    files: Any = None  # what gives its files by name, for machines that do not have the folder


@dataclass(frozen=True)
class Job:
    """What every worker is told once."""

    model: Model
    place: Place
    table: str
    version: int
    gone: frozenset[bytes]  # contents of pictures whose files are gone: who has one may be such a picture, moved
    cores: int = 1
    batch_size: int | None = None


class Reading:
    """A worker. Ray makes one a process, and calls it with one block of tasks after the other."""

    def __init__(self, job: Job):
        """Opens nothing yet: what goes wrong is told in a report."""
        self.job = job
        self._opened: tuple[Encoder, Any] | None = None

    def __call__(self, block: Any) -> Any:
        """Tasks as a pyarrow table to one row: what came of them (`Report`)."""
        tasks = tasks_of(block)
        report = Report(tasks[0].number)
        try:
            if self._opened is None:
                use_cores(self.job.cores)
                self._opened = opened(self.job.model), self.job.place.open(self.job.table, self.job.version)
            encoder, table = self._opened
            self._read(encoder, tasks, report)
            return report.table(table, self.job.place)
        except ClipletError as error:
            return Report(tasks[0].number).of_error(error.message, error.hint)
        except OSError as error:
            return Report(tasks[0].number).of_error(f"{socket.gethostname()}: {reason(error)}", "")

    def _read(self, encoder: Encoder, tasks: Sequence[Task], report: Report) -> None:
        found: dict[int, FileRead] = {}

        def read(task: Task) -> bytes:
            data, found[task.number] = read_file(task.path)
            return data

        done = 0
        for features_BD, failed in encoder.encode_image_blocks(tasks, batch_size=self.job.batch_size, read=read):
            for row, task in enumerate(tasks[done : done + len(features_BD)]):
                about = found.pop(task.number, None)
                if row in failed:
                    report.fail(task, about, failed[row].message)
                elif about is not None:
                    report.take(task, about, features_BD[row], self.job.gone)
            done += len(features_BD)


class Report:
    """What came of a block of tasks."""

    def __init__(self, first: int):
        """`first`: the number of its first task, by which the block is known."""
        self.said: dict[str, Any] = {"host": socket.gethostname(), "first": first}
        self.said |= {"plain": [], "failed": [], "missing": [], "special": []}
        self._rows: list[dict[str, Any]] = []
        self._features: dict[bool, list[np.ndarray]] = {True: [], False: []}

    def fail(self, task: Task, about: FileRead | None, reason: str) -> None:
        """A file that gave no picture."""
        if about is None and not os.path.lexists(task.path):
            self.said["missing"].append(task.number)
        else:
            read = (about.changed, about.content.hex()) if about else (None, "")
            self.said["failed"].append((task.number, reason, *read))

    def take(self, task: Task, about: FileRead, features_D: np.ndarray, gone: frozenset[bytes]) -> None:
        """A picture."""
        plain = task.plain and about.content not in gone
        self._features[plain].append(features_D)
        if plain:
            entry = Entry(task.path, about.bytes, about.changed, about.content, about.columns, task.captions)
            self._rows.append(picture_row(entry, task.id, task.before))
            self.said["plain"].append((task.number, task.id, about.content.hex()))
        else:
            self.said["special"].append((task.number, asdict(about) | {"content": about.content.hex()}))

    def table(self, dataset: Any, place: Place) -> Any:
        """As one row. The plain pictures are in files of the table by then, which are named."""
        fragments = []
        if self._rows:
            fragments = written(pictures_table(self._rows, np.stack(self._features[True])), dataset, place)
        self.said["fragments"] = [json.dumps(one.to_json()) for one in fragments]
        special = b""
        if self._features[False]:
            special = np.stack(self._features[False]).astype(np.float32).tobytes()
        return self._row(special)

    def of_error(self, message: str, hint: str) -> Any:
        """The same, of a block over which the whole run has to end."""
        self.said["error"] = (message, hint)
        return self._row(b"")

    def _row(self, features: bytes) -> Any:
        import pyarrow as pa

        return pa.table({"said": [json.dumps(self.said)], "features": pa.array([features], type=pa.binary())})


def tasks_table(tasks: Sequence[Task]) -> Any:
    """Tasks as a pyarrow table. Names of files are bytes, whatever they are."""
    import pyarrow as pa

    before = [task.before for task in tasks]
    texts = {
        "captions": [None if task.captions is None else joined(task.captions) or "" for task in tasks],
        "before": [None if one is None else joined(one.captions) or "" for one in before],
        "own": [None if one is None else joined(one.own) or "" for one in before],
        "added": [None if one is None else one.added for one in before],
    }
    return pa.table(
        {
            "number": pa.array([task.number for task in tasks], type=pa.int64()),
            "path": pa.array([os.fsencode(task.path) for task in tasks], type=pa.binary()),
            "id": pa.array([task.id for task in tasks], type=pa.int64()),
            "plain": pa.array([task.plain for task in tasks], type=pa.bool_()),
            **{name: pa.array(values, type=pa.string()) for name, values in texts.items()},
        }
    )


def tasks_of(table: Any) -> list[Task]:
    """From such a table."""
    tasks = []
    for row in table.to_pylist():
        captions = None if row["captions"] is None else listed(row["captions"])
        before = None if row["added"] is None else Before(listed(row["before"]), listed(row["own"]), row["added"])
        tasks.append(Task(row["number"], os.fsdecode(row["path"]), row["id"], row["plain"], captions, before))
    return tasks


def model_files(folder: Path, weights: bool) -> dict[str, bytes]:
    """What a worker needs of a model folder, by name. `weights`: those of PyTorch as well. Raises OSError."""
    names = [model_folder.CONFIG, model_folder.TOKENIZER]
    graphs = sorted((folder / model_folder.GRAPHS).glob("*"))
    names += [f"{model_folder.GRAPHS}/{file.name}" for file in graphs if file.is_file()]
    if weights or not graphs:
        names.append(model_folder.WEIGHTS)
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def opened(model: Model) -> Encoder:
    """The model, from the folder itself where this machine has it, else from a copy that is made once a machine.

    Raises ModelError where the copy is not what it should be, or nothing installed runs it.
    """
    from cliplet.runtime.encoder import load
    from cliplet.runtime.identity import features_hashes

    folder = Path(model.folder)
    if features_hashes(folder) != model.hashes:
        folder = _unpacked(model)
        if features_hashes(folder) != model.hashes:
            raise ModelError(f"{folder}: is not the model {model.folder} as it was sent", "Remove it, and run again.")
    try:
        return load(folder, engine=model.engine, precision=model.precision, dims=model.dims)
    except ModelError:
        if not model.exact:
            raise
        return load(folder, dims=model.dims)


def _unpacked(model: Model) -> Path:
    """A folder in the cache with the model's files."""
    key = hashlib.sha256(json.dumps(model.hashes, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "models" / key
    if folder.is_dir():
        return folder
    if model.files is None:
        raise ModelError(f"{model.folder}: is not on {socket.gethostname()}, and was not sent there")
    files: Mapping[str, bytes] = model.files()
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=folder.parent))
    try:
        for name, content in files.items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            (beside / name).write_bytes(content)
        beside.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another worker of this machine was quicker
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def use_cores(count: int) -> None:
    """Has cliplet take no more cores in this process: as many workers run here as there are cores."""
    from cliplet.runtime.cores import cores

    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, sorted(allowed)[:count])
        cores.cache_clear()
        cores()  # what it finds now is kept
    finally:
        os.sched_setaffinity(0, allowed)
