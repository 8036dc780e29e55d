"""Several processes that train one model: who they are, what they tell each other, and how they end together.

`torchrun --nproc-per-node N -m cliplet train ...` starts N ranks on a machine, or on many. Each embeds its part of the
batch; features are gathered, so that every rank computes the loss of the whole batch (`step.py`). This file knows
processes and tensors, and nothing of models.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from cliplet.config import RunConfig
from cliplet.errors import ClipletError, TrainingError

FAILED = "cliplet/failed"  # the key of the store under which the first rank that fails leaves its error
HEARD = "cliplet/heard"  # how many ranks have read it
LAST_WORDS = 5.0  # seconds that a rank has to end by itself, once another has failed
T = TypeVar("T")


class Ranks:
    """This process among those that train together. Alone, every method gives what it was given, without any cost.

    What tells of counts, wishes and Python objects goes by way of the CPU, so that it waits for no GPU's work.
    """

    def __init__(self, rank: int = 0, size: int = 1, host: dist.ProcessGroup | None = None):
        """`host`: all ranks, over gloo; None: the default group is over gloo."""
        self.rank, self.size, self._host = rank, size, host

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def exchange(self, *numbers: int) -> list[list[int]]:
        """The numbers of every rank, by rank."""
        if self.size == 1:
            return [list(numbers)]
        own = torch.tensor(numbers, dtype=torch.int64)
        all_ = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(all_, own, group=self._host)
        return [one.tolist() for one in all_]

    def gather(self, rows: torch.Tensor, counts: Sequence[int]) -> list[torch.Tensor]:
        """The rows of every rank, by rank; `counts` says how many each has. Without gradient."""
        if self.size == 1:
            return [rows]
        longest = max(counts)
        own = rows.new_zeros((longest, *rows.shape[1:]))  # a collective wants tensors of one shape
        own[: len(rows)] = rows
        all_ = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(all_, own)
        return [one[:count] for one, count in zip(all_, counts, strict=True)]

    def gather_arrays(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows of every rank, by rank, on the CPU."""
        counts = [count for (count,) in self.exchange(len(rows))]
        return [part.numpy() for part in self.gather(torch.from_numpy(np.ascontiguousarray(rows)), counts)]

    def gather_objects(self, one: T) -> list[T]:
        """What every rank has, by rank."""
        if self.size == 1:
            return [one]
        all_: list[Any] = [None] * self.size
        dist.all_gather_object(all_, one, group=self._host)
        return all_

    def from_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on every rank; the others make nothing."""
        if self.size == 1:
            return make()
        made: list[Any] = [make() if self.first else None]
        dist.broadcast_object_list(made, src=0, group=self._host)
        return made[0]

    def mean_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Each tensor becomes its mean over the ranks, in one exchange."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors]) / self.size
        dist.all_reduce(flat)
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def as_first_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Each tensor becomes rank 0's."""
        if self.size > 1:
            with torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def barrier(self) -> None:
        """Waits until every rank is here."""
        self.exchange(0)

    def refuse_differences(self, **facts: str) -> None:
        """Raises TrainingError where a fact is not the same on every rank, naming it and who says what."""
        for rank, theirs in enumerate(self.gather_objects(facts)):
            for name, fact in facts.items():
                if theirs[name] != facts[name] and not self.rank:
                    raise TrainingError(
                        f"the ranks differ in their {name}: rank 0: {fact}; rank {rank}: {theirs[name]}",
                        "Every machine needs the same data, the same pretrained weights and the same command.",
                    )


def started_by_launcher() -> bool:
    """Whether a launcher such as torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def place_of_rank() -> tuple[int, int]:
    """Number of this process on its machine, and how many there are on it."""
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def refuse_bad_batch(config: RunConfig, ranks: Ranks) -> None:
    """Raises TrainingError for a batch that the ranks cannot share out evenly, or chunks that its shares cannot."""
    batch, chunk, size = config.train.batch_size, config.train.chunk_size, ranks.size
    if batch < size or batch % size:
        lower = batch - batch % size
        fitting = f"{lower} or {lower + size}" if lower else str(size)
        raise TrainingError(
            f"a batch of {batch} pictures cannot be shared out evenly among {size} ranks",
            f"Set --train.batch-size {fitting}, or start another number of ranks.",
        )
    share = batch // size
    if isinstance(chunk, int) and share % chunk:
        fitting = ", ".join(str(part) for part in range(1, share + 1) if share % part == 0)
        of = (
            f"{share} pictures, a rank's share of the batch of {batch}," if size > 1 else f"a batch of {batch} pictures"
        )
        raise TrainingError(f"chunks of {chunk} do not divide {of}", f"Set --train.chunk-size to one of {fitting}.")


@contextmanager
def joined(timeout: float) -> Iterator[Ranks]:
    """The ranks that a launcher started, connected; or one that is alone.

    Where one of them fails, the others end with its error, instead of waiting for it. `timeout`: seconds that
    ranks wait for each other. Raises TrainingError when some never come, or their port is taken.
    """
    if not started_by_launcher():
        yield Ranks()
        return
    if "RANK" not in os.environ:
        raise TrainingError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but RANK is not set",
            "Start with torchrun, which sets all that ranks need, or unset WORLD_SIZE to train in one process.",
        )
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    ranks = Ranks(rank, size, _connect(rank, size, timeout))
    link = _Link(dist.distributed_c10d._get_default_store(), rank, size)
    broken: BaseException | None = None
    try:
        yield ranks
    except BaseException as error:
        broken = link.broken_by(error)
        if broken is error:
            _record(error)
            raise
    if broken is not None:
        _record(broken)
        raise broken
    link.close()
    ranks.barrier()  # rank 0 may hold the store, so it must not be the first to go
    dist.destroy_process_group()


def _connect(rank: int, size: int, timeout: float) -> dist.ProcessGroup | None:
    """Joins the group of all ranks; gives the like over gloo, where there are GPUs and the default group is not."""
    wait = timedelta(seconds=timeout)
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT", "29500")
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=wait, rank=rank, world_size=size
        )
        made = dist.new_group(backend="gloo", timeout=wait) if torch.cuda.is_available() else None
        host = made if isinstance(made, dist.ProcessGroup) else None
        # The first exchange connects everybody; who never came is noticed here and not in the midst of training.
        Ranks(rank, size, host).barrier()
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise TrainingError(
                f"rank {rank}: port {port} of {address} is taken, perhaps by another run",
                "Name another port: torchrun --master-port PORT ..., or on one machine torchrun --standalone ...",
            ) from None
        raise TrainingError(
            f"rank {rank}: not all {size} ranks came within {timeout:.0f} s: {reason}",
            f"Start every rank of the {size}, on every machine, with the same --nnodes and --nproc-per-node; all must "
            f"reach {address}:{port}, which no other program may have. train.rank_timeout sets how long they wait.",
        ) from None
    return host


class _Link:
    """How ranks learn of each other's failure: the first error is left in the store, and each of them looks there.

    On a GPU a collective whose partner has gone does not return, so a rank that still waits in one, some seconds after
    another has failed, is ended from here.
    """

    def __init__(self, store: dist.Store, rank: int, size: int):
        self.store, self.rank, self.size = store, rank, size
        self.reason = ""  # why another rank failed
        self._over = threading.Event()
        own = store.clone() if hasattr(store, "clone") else store  # torch from 2.8 on; else calls wait for each other
        self._watch = threading.Thread(target=self._look, args=(own,), name="other ranks", daemon=True)
        self._watch.start()

    def close(self) -> None:
        """Looks no more."""
        self._over.set()
        self._watch.join()

    def broken_by(self, error: BaseException) -> BaseException:
        """Tells the other ranks of an error; or, where it only follows from another rank's failure, gives that."""
        follows = isinstance(error, RuntimeError) and not isinstance(error, ClipletError) and _is_broken_group(error)
        deadline = time.monotonic() + LAST_WORDS
        while follows and not self.reason and self._watch.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._over.set()
        if follows:
            error = TrainingError(
                self.reason or f"rank {self.rank}: another rank has gone without a word: {str(error).splitlines()[0]}",
                ""
                if self.reason
                else "It may have been killed, for want of memory perhaps; look at its machine's log.",
            )
        with suppress(RuntimeError):  # the store went with the rank that held it
            self.store.compare_set(FAILED, "", f"rank {self.rank} failed: {_words(error)}")
            if self.rank and not self.reason:
                self.store.add(HEARD, 1)
            # Rank 0 may hold the store, and stays until the others have read it.
            while not self.rank and self.store.add(HEARD, 0) < self.size - 1 and time.monotonic() < deadline:
                time.sleep(0.05)
        return error

    def _look(self, store: dist.Store) -> None:
        try:
            while not store.check([FAILED]):
                if self._over.wait(0.5):
                    return
            self.reason = store.get(FAILED).decode()
            store.add(HEARD, 1)
        except RuntimeError:  # the store went with its holder; what waits for it finds out by itself
            return
        if not self._over.wait(LAST_WORDS):
            print(f"error: {self.reason}", file=sys.stderr, flush=True)
            os._exit(1)


def _record(error: BaseException) -> None:
    """Leaves an error for the summary that torchrun prints."""
    if isinstance(error, Exception):
        try:
            raise error
        except Exception:
            get_error_handler().record_exception(error)


def _words(error: BaseException) -> str:
    if isinstance(error, ClipletError):
        return f"{error.message}. {error.hint}" if error.hint else error.message
    return f"{type(error).__name__}: {error}"


def _is_broken_group(error: RuntimeError) -> bool:
    """Whether an error says that another rank, or the way to it, has gone."""
    words = str(error).lower()
    signs = ("connection closed", "connection reset", "gloo", "nccl", "timed out", "timeout", "broken pipe", "socket")
    return isinstance(error, dist.DistError) or any(sign in words for sign in signs)
