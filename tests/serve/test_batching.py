"""Single requests become batches; each gets its own result, or its own error."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cliplet.serve.batching import Batcher, Remembered


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


class Doubler:
    """Doubles numbers, once its gate is open; the batches that it was given."""

    def __init__(self):
        self.batches, self.gate = [], threading.Event()
        self.gate.set()

    def __call__(self, items):
        self.batches.append(items)
        assert self.gate.wait(10)
        return [ValueError(f"{item} is bad") if item < 0 else 2 * item for item in items]


def test_an_item_that_comes_alone_waits_for_nothing(pool):
    work = Doubler()

    async def run():
        batcher = Batcher(work, pool, 8)
        return [await batcher(1), await batcher(2)]

    assert asyncio.run(run()) == [2, 4] and work.batches == [[1], [2]]


def test_what_comes_during_a_batch_is_the_next_one(pool):
    work, sizes = Doubler(), []
    work.gate.clear()

    async def run():
        batcher = Batcher(work, pool, 8, sizes.append)
        first = asyncio.create_task(batcher(0))
        while not work.batches:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher(number)) for number in range(1, 21)]
        await asyncio.sleep(0.01)
        work.gate.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(run()) == [2 * number for number in range(21)]
    assert sizes == [1, 8, 8, 4] == [len(batch) for batch in work.batches]


def test_an_error_belongs_to_its_item(pool):
    work = Doubler()

    async def run():
        batcher = Batcher(work, pool, 8)
        return await asyncio.gather(*map(batcher, [1, -2, 3]), return_exceptions=True)

    one, two, three = asyncio.run(run())
    assert (one, three) == (2, 6) and isinstance(two, ValueError) and str(two) == "-2 is bad"


def test_an_error_of_the_work_reaches_all_of_its_batch_and_no_other(pool):
    calls = []

    def work(items):
        calls.append(items)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return items

    async def run():
        batcher = Batcher(work, pool, 2)
        return await asyncio.gather(*map(batcher, [1, 2, 3]), return_exceptions=True)

    one, two, three = asyncio.run(run())
    assert str(one) == str(two) == "out of memory" and three == 3


def test_nobody_computes_for_who_has_gone(pool):
    work = Doubler()
    work.gate.clear()

    async def run():
        batcher = Batcher(work, pool, 8)
        tasks = [asyncio.create_task(batcher(0))]
        while not work.batches:
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(batcher(number)) for number in (1, 2)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.sleep(0)
        work.gate.set()
        return await tasks[2]

    assert asyncio.run(run()) == 4 and work.batches == [[0], [2]]


def test_what_was_used_longest_ago_is_forgotten():
    remembered = Remembered(2)
    remembered.put("a", 1)
    remembered.put("b", 2)
    assert remembered.get("a") == 1
    remembered.put("c", 3)
    assert (remembered.get("a"), remembered.get("b"), remembered.get("c")) == (1, None, 3)
