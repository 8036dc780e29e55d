"""`cliplet index --workers ray`: the same run, with pictures read and embedded by Ray Data on any number of machines.

    driver   looks through the folders, gives out blocks of files, and alone changes the library
    workers  read, hash, embed, and write files of the table that do not belong to it yet (`bulk_worker.py`)

The driver makes such files part of the table every few seconds, each block's once. Pictures whose rows depend on what
the library holds (changed ones, and those that may have moved) come back to it and take the way of a local run. So
there is nothing to keep of a run: after a kill, what is in the table is known by path, size and time.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cliplet.errors import ConfigError, DataError, ImageError, ModelError
from cliplet.library.batch import Batch, FileRead
from cliplet.library.bulk_worker import Job, Model, Reading, Task, model_files, tasks_table
from cliplet.library.identity import identity_of
from cliplet.library.indexing import COMMIT_SECONDS, Indexing
from cliplet.library.lance_tables import INSTALL
from cliplet.library.lance_writer import LanceWriter
from cliplet.library.scan import Scan, Seen
from cliplet.runtime.choice import is_installed
from cliplet.runtime.cores import cores
from cliplet.runtime.identity import features_hashes, graphs_of

if TYPE_CHECKING:
    from cliplet.runtime.encoder import Encoder

IN_BLOCK, IN_BLOCK_LEAST = 256, 16  # files: a worker that is lost takes a few seconds' work with it
BLOCKS_A_WORKER = 4  # at least, where there are few files
DEATHS = 4  # of workers over one block; at the next one a file in it is to blame
STORE_BYTES = 2**28  # of Ray's memory for objects, where Ray is started on this machine for the run


class Cluster(NamedTuple):
    """Ray, running."""

    ray: Any
    alone: bool  # on this machine only, and for this run only
    workers: int


class RayIndexing(Indexing):
    """A run whose pictures are read and embedded by Ray's workers, a core each. The library is one in LanceDB."""

    def _read(self, scan: Scan, gone: set[int], captions: Mapping[str, tuple[str, ...]]) -> None:
        if not isinstance(self.writer, LanceWriter):
            raise ConfigError(
                "workers of Ray write into LanceDB, and the library is a folder of cliplet's own",
                "Name it lance:URI, or leave Ray out.",
            )
        refuse_without_ray()
        began = time.monotonic()
        batch = Batch(self.writer, self.counts, gone, scan.away)
        tasks = self._tasks(scan.to_read, captions, batch)
        taking = _Taking(self, self.writer, batch, scan.to_read, captions)
        total, done = len(scan.to_read), len(scan.to_read) - len(tasks)
        self.tell(done, total)
        try:
            with running() as cluster:
                blocks = list(_blocks(tasks, cluster.workers))
                for said, features in _reports(cluster, self._job(cluster, gone | scan.away.keys()), blocks):
                    done += taking.take(json.loads(said), features)
                    self.tell(done, total)
        finally:
            taking.commit()
            self.counts.seconds = time.monotonic() - began

    def _tasks(self, to_read: Sequence[Seen], captions: Mapping[str, tuple[str, ...]], batch: Batch) -> list[Task]:
        """What the workers are to do. Names that LanceDB does not take go to the problems."""
        writer = self.writer
        assert isinstance(writer, LanceWriter)
        there = set(writer.pictures.rows(["id"])["id"].to_pylist())
        next_id = writer.reserve(sum(seen.id is None for seen in to_read))
        before = writer.before([seen.id for seen in to_read if seen.id is not None and seen.id not in there])
        tasks = []
        for number, seen in enumerate(to_read):
            if refusal := writer.refusal(seen.path):
                self._failed(batch, seen, None, ImageError(refusal))
                continue
            given = captions.get(os.path.realpath(seen.path)) if captions else None
            id = seen.id
            if id is None:
                id, next_id = next_id, next_id + 1
            tasks.append(Task(number, seen.path, id, seen.id not in there, given, before.get(id)))
        return tasks

    def _job(self, cluster: Cluster, gone: set[int]) -> Job:
        writer = self.writer
        assert isinstance(writer, LanceWriter)
        table = writer.pictures
        table.opened()
        contents = frozenset(writer.contents_of(gone))
        model = _model(self.encoder(), cluster)
        return Job(model, writer.place, table.name, table.version, contents, batch_size=self.batch_size)


class _Taking:
    """What the driver does with what workers send."""

    def __init__(
        self,
        run: Indexing,
        writer: LanceWriter,
        batch: Batch,
        to_read: Sequence[Seen],
        captions: Mapping[str, tuple[str, ...]],
    ):
        self.run, self.writer, self.batch, self.to_read, self.captions = run, writer, batch, to_read, captions
        self._fragments: list[Any] = []
        self._contents: list[tuple[int, bytes]] = []  # of the pictures in them, by number
        self._had: set[int] = set()  # blocks, by their first task
        self._committed = time.monotonic()

    def take(self, said: Mapping[str, Any], features: bytes) -> int:
        """A block's report; returns how many files it is of. Raises DataError where a machine does not see the files
        that this one sees, ModelError where it cannot open the model or write."""
        if said["first"] in self._had:
            return 0
        self._had.add(said["first"])
        if "error" in said:
            raise ModelError(*said["error"])
        for number in said["missing"]:
            if os.path.lexists(self.to_read[number].path):
                raise DataError(
                    f"{self.to_read[number].path}: is not there on {said['host']}, though it is here",
                    "Every machine of the cluster has to see the folders under the same names: put them on a shared "
                    "file system.",
                )
            self.run._failed(self.batch, self.to_read[number], None, ImageError(""))
        self._take_plain(said)
        self._take_special(said["special"], features)
        for number, reason, changed, content in said["failed"]:
            about = None if changed is None else FileRead(bytes.fromhex(content), 0, changed, {})
            self.run._failed(self.batch, self.to_read[number], about, ImageError(reason))
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()
            self.run.committed(self.run.counts.added)
        return sum(len(said[kind]) for kind in ("plain", "special", "failed", "missing"))

    def _take_plain(self, said: Mapping[str, Any]) -> None:
        from lance import FragmentMetadata

        self._fragments += [FragmentMetadata.from_json(text) for text in said["fragments"]]
        self._contents += [(id, bytes.fromhex(content)) for _, id, content in said["plain"]]
        new = sum(self.to_read[number].id is None for number, *_ in said["plain"])
        counts = self.run.counts
        counts.added += new
        counts.changed += len(said["plain"]) - new
        counts.embedded += len(said["plain"])

    def _take_special(self, special: Sequence[tuple[int, dict[str, Any]]], features: bytes) -> None:
        if special:
            features_SD = np.frombuffer(features, dtype=np.float32).reshape(len(special), -1)
            for (number, about), features_D in zip(special, features_SD, strict=True):
                seen = self.to_read[number]
                read = FileRead(**{**about, "content": bytes.fromhex(about["content"])})
                given = self.captions.get(os.path.realpath(seen.path)) if self.captions else None
                self.batch.add(seen, read, features_D, given)

    def commit(self) -> None:
        """Makes what came part of the library."""
        fragments, contents = self._fragments, self._contents
        self._fragments, self._contents = [], []
        if fragments:
            self.writer.adopt(fragments, contents)
        self.batch.commit()
        self._committed = time.monotonic()


def refuse_without_ray() -> None:
    """Raises ModelError where Ray Data is not installed."""
    if not is_installed("ray"):
        raise ModelError("spreading the work needs the package ray, which is not installed", INSTALL)


@contextmanager
def running() -> Iterator[Cluster]:
    """Ray: as this process has it already; the cluster that RAY_ADDRESS names; or one on this machine's cores, which
    ends with the block. Raises DataError where there is no such cluster."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it writes to the terminal, past what is set below
    import ray

    if ray.is_initialized():
        yield Cluster(ray, False, _workers(ray))
        return
    address = os.environ.get("RAY_ADDRESS", "")
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address or address == "local":
        how |= {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": STORE_BYTES}
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # What Ray forks becomes another program at once, in which LanceDB is not.
            warnings.filterwarnings("ignore", message="lance is not fork-safe")
            with _silent():
                ray.init(address=address or "local", **how)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"no Ray at RAY_ADDRESS={address}: {reason}",
            "Is the cluster running? One that asks for a token wants RAY_AUTH_MODE=token here as well.",
        ) from None
    try:
        yield Cluster(ray, "num_cpus" in how, _workers(ray))
    finally:
        ray.shutdown()


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing on the terminal, not even from libraries that write to it by themselves. Errors are exceptions."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _workers(ray: Any) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _blocks(tasks: Sequence[Task], workers: int) -> Iterator[Any]:
    """Tasks in tables, so large that a table is a few seconds' work, and that all workers have something to do."""
    size = min(IN_BLOCK, max(IN_BLOCK_LEAST, math.ceil(len(tasks) / (workers * BLOCKS_A_WORKER))))
    for start in range(0, len(tasks), size):
        yield tasks_table(tasks[start : start + size])


def _reports(cluster: Cluster, job: Job, blocks: Sequence[Any]) -> Iterator[tuple[str, bytes]]:
    """What comes of blocks of tasks, in whatever order. Raises DataError where a file kills every worker that reads
    it, and whatever a worker raises."""
    if not blocks:
        return
    from ray import data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    workers = min(cluster.workers, len(blocks))
    with warnings.catch_warnings():
        # Ray has no other way to say how often a block is tried, and by itself tries for ever.
        warnings.filterwarnings("ignore", message=".*ray_remote_args", category=DeprecationWarning)
        reports = data.from_arrow(list(blocks)).map_batches(
            Reading,
            fn_constructor_args=(job,),
            batch_size=None,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
            num_cpus=job.cores,
            max_task_retries=DEATHS,
        )
    try:
        for batch in reports.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
            yield from zip(batch["said"].to_pylist(), batch["features"].to_pylist(), strict=True)
    except cluster.ray.exceptions.RayError as error:
        raise DataError(
            f"Ray could not go on: {str(error).strip().splitlines()[-1]}",
            "What was embedded until then is kept, and the same command goes on. "
            f"A file over which {DEATHS + 1} workers died has to be taken away first.",
        ) from error


def _model(encoder: Encoder, cluster: Cluster) -> Model:
    """The model as workers get it. Raises ModelError for one that is no folder."""
    folder = Path(encoder.source)
    hashes = features_hashes(folder) if encoder.source else {}
    if not hashes:
        raise ModelError(
            f"{encoder.source or 'a model that was never saved'}: only a model folder can go to workers",
            "Export it first: cliplet export MODEL --out FOLDER.",
        )
    identity = identity_of(encoder)
    own = graphs_of(folder).get("embed_dim")
    dims = None if own in (None, identity.dims) else identity.dims
    files = None
    if not cluster.alone:
        sent = cluster.ray.put(model_files(folder, weights=identity.engine == "torch"))
        files = partial(cluster.ray.get, sent)
    return Model(str(folder.absolute()), hashes, identity.engine, identity.precision, dims, identity.exact, files)
