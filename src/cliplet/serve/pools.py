"""Threads for what takes time, of which no client gets so many that nothing is left for others."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")

CLIENT: ContextVar[str] = ContextVar("client", default="")  # who asked for what is being done


class Pool(ThreadPoolExecutor):
    """Threads that know what they are doing: how much of it is whose, and whether anything still runs."""

    def __init__(self, name: str, threads: int, of_one: int):
        """`of_one`: threads that one client gets at a time. For one event loop."""
        super().__init__(threads, thread_name_prefix=name)
        self.name = name
        self._of_one = of_one
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._open: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **keywords: Any) -> Future[Any]:
        """As every executor's."""
        future = super().submit(fn, *args, **keywords)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    async def run(self, work: Callable[[], T]) -> T:
        """Does `work` in a thread, when it is this client's turn.

        Whoever is cancelled stops waiting at once. Work that has begun goes on, and counts as the client's until it
        has ended: else somebody who asks and leaves, again and again, would have all threads.
        """
        client, loop = CLIENT.get(), asyncio.get_running_loop()
        turn = self._turns.get(client)
        if turn is None:
            turn = self._turns[client] = asyncio.Semaphore(self._of_one)
        await turn.acquire()

        def ended(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before the work did
                loop.call_soon_threadsafe(turn.release)

        try:
            future: Future[T] = self.submit(work)
        except BaseException:
            turn.release()
            raise
        future.add_done_callback(ended)
        return await asyncio.wrap_future(future)

    def end(self) -> None:
        """Begins nothing more."""
        self.shutdown(wait=False, cancel_futures=True)

    def wait(self, until: float) -> bool:
        """Waits for what runs, no longer than to a moment of `time.monotonic`; whether all of it has ended."""
        return not concurrent.futures.wait(list(self._open), max(0.0, until - time.monotonic())).not_done


@dataclasses.dataclass(frozen=True)
class Pools:
    """Threads by how long their work takes, so that what is quick waits for nothing that is slow."""

    quick: Pool  # searches and short texts
    slow: Pool  # decoding, and many texts
    files: Pool  # what waits for the disk
