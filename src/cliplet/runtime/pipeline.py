"""Work for every core at once, with its results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

from cliplet.runtime.cores import cores

AHEAD = 2  # items for each thread that may be under way: one being worked on, one waiting for its turn to be read

T = TypeVar("T")
R = TypeVar("R")


def blocks_of(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last may be shorter."""
    remaining = iter(items)
    while block := list(islice(remaining, size)):
        yield block


def in_order(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`work` of each item, done by as many threads as there are cores, in the order of the items.

    At most AHEAD items a thread are begun before their results are taken. An error of `work`, or of whoever reads the
    results, ends the threads first. A single item is done without any.
    """
    remaining = iter(items)
    first = list(islice(remaining, 2))
    if len(first) == 1:
        yield work(first[0])
        return
    remaining = chain(first, remaining)
    workers = cores()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
    try:
        queue: deque[Future[R]] = deque(pool.submit(work, item) for item in islice(remaining, AHEAD * workers))
        while queue:
            yield queue.popleft().result()
            queue.extend(pool.submit(work, item) for item in islice(remaining, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
