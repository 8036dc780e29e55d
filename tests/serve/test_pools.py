"""Threads of which one client does not get all, and which do not have to be waited for."""

import asyncio
import threading
import time

import pytest

from cliplet.serve.pools import CLIENT, Pool


async def asked(pool, client, work):
    CLIENT.set(client)
    return await pool.run(work)


def test_work_that_was_given_up_counts_until_it_has_ended():
    """A client that asks and leaves, again and again, has one thread of two."""
    end, began = threading.Event(), []

    def work():
        began.append(1)
        end.wait(5)

    async def run():
        pool = Pool("x", 2, 1)
        for _ in range(5):
            asking = asyncio.create_task(asked(pool, "impatient", work))
            await asyncio.sleep(0.02)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        start = time.monotonic()
        assert await asked(pool, "other", lambda: "done") == "done" and time.monotonic() - start < 1
        assert len(began) == 1
        waiting = asyncio.create_task(asked(pool, "impatient", lambda: "at last"))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        end.set()
        assert await asyncio.wait_for(waiting, 5) == "at last"
        pool.end()
        assert pool.wait(time.monotonic() + 5)

    asyncio.run(run())


def test_errors_come_through_and_end_the_turn():
    async def run():
        pool = Pool("x", 2, 1)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(asked(pool, "a", lambda: 1 / 0), 5)
        pool.end()
        for _ in range(3):
            with pytest.raises(RuntimeError):  # nothing is taken any more
                await asyncio.wait_for(asked(pool, "a", lambda: 1), 5)

    asyncio.run(run())


def test_what_runs_is_waited_for_no_longer_than_is_said():
    end, done = threading.Event(), []
    pool = Pool("x", 1, 1)
    pool.submit(end.wait, 5)
    pool.submit(done.append, 1)
    pool.end()
    start = time.monotonic()
    assert not pool.wait(start + 0.1) and 0.05 < time.monotonic() - start < 1
    end.set()
    assert pool.wait(time.monotonic() + 5) and done == []
