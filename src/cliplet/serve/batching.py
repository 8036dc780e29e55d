"""What waits together is computed together: single requests to batches for a model, and vectors that are remembered."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Calls `work` with all items that wait, and gives each its own result.

    One call runs at a time. What comes while it runs waits for the next, so that batches grow with the load and an
    item that comes alone waits for nothing. Belongs to one event loop; `work` runs in a thread of `pool`.
    """

    def __init__(
        self,
        work: Callable[[list[T]], Sequence[R | Exception]],
        pool: Executor,
        largest: int,
        tell: Callable[[int], None] = lambda size: None,
    ):
        """`work`: a result for each item, or the error that this item alone shall raise. `largest`: items of a batch.
        `tell` hears each batch's size."""
        self._work, self._pool, self._largest, self._tell = work, pool, largest, tell
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, item: T) -> R:
        """The result of one item; raises its error, or that of its whole batch."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                taken, self._waiting = self._waiting[: self._largest], self._waiting[self._largest :]
                wanted = [pair for pair in taken if not pair[1].done()]  # whoever waited may have gone
                if wanted:
                    self._tell(len(wanted))
                    items = [item for item, _ in wanted]
                    await self._answer(wanted, loop.run_in_executor(self._pool, self._work, items))
        finally:
            self._running = None
            for _, future in self._waiting:  # the service stops, else nothing is left here
                future.cancel()
            self._waiting.clear()

    @staticmethod
    async def _answer(
        wanted: list[tuple[T, asyncio.Future[R]]], running: asyncio.Future[Sequence[R | Exception]]
    ) -> None:
        """Hands a batch's results to those who still wait for them."""
        try:
            results: Sequence[R | Exception] = await running
        except Exception as error:
            results = [error] * len(wanted)
        except asyncio.CancelledError:
            for _, future in wanted:
                future.cancel()
            raise
        for (_, future), result in zip(wanted, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


class Remembered(Generic[R]):
    """The results used last, no more than `most`. For one thread, or one event loop."""

    def __init__(self, most: int):
        self._most = most
        self._results: OrderedDict[Hashable, R] = OrderedDict()

    def get(self, key: Hashable) -> R | None:
        """What was put under `key`; None where that is not remembered."""
        if key in self._results:
            self._results.move_to_end(key)
        return self._results.get(key)

    def put(self, key: Hashable, result: R) -> None:
        """Remembers `result`, and forgets what was used longest ago."""
        self._results[key] = result
        self._results.move_to_end(key)
        while len(self._results) > self._most:
            self._results.popitem(last=False)
