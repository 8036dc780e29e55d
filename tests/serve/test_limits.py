"""Budgets of clients, and bodies that are too large or too slow."""

import asyncio
import time

import pytest
from starlette.datastructures import Headers

from cliplet.serve.limits import CLIENTS, Body, Buckets, client_key
from cliplet.serve.refusals import Refused


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_a_client_may_ask_as_often_as_its_budget_fills():
    clock = Clock()
    buckets = Buckets(2.0, 3, clock)
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a") == pytest.approx(0.5) and buckets.take("b") == 0
    clock.now += 0.5
    assert buckets.take("a") == 0 and buckets.take("a") == pytest.approx(0.5)
    clock.now += 100
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 0] and buckets.take("a") > 0


def test_a_rate_of_nothing_has_no_end():
    buckets = Buckets(0.0, 1, Clock())
    assert not any(buckets.take("a") for _ in range(1000))


def test_clients_that_come_and_go_take_no_more_memory():
    buckets = Buckets(1.0, 1, Clock())
    for number in range(CLIENTS + 100):
        buckets.take(str(number))
    assert len(buckets._left) == CLIENTS


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::1"),
        ("", ""),
    ],
)
def test_addresses_that_one_client_gets_count_as_one(address, key):
    assert client_key(address) == key


def parts(*messages, every=0.0):
    """A body that comes in parts."""
    waiting = list(messages)

    async def receive():
        await asyncio.sleep(every)
        data = waiting.pop(0)
        return {"type": "http.request", "body": data, "more_body": bool(waiting)}

    return receive


def body_of(receive, most, seconds, rate):
    return Body(receive, Headers({"transfer-encoding": "chunked"}), most, seconds, rate)


async def whole(body):
    got = b""
    while not body.done:
        got += (await body.receive())["body"]
    return got


def test_a_body_of_just_the_allowed_size_passes():
    assert asyncio.run(whole(body_of(parts(b"abc", b"de"), 5, 1.0, 1000))) == b"abcde"


def test_a_larger_body_is_refused_before_it_is_whole():
    left = [b"abc", b"def", b"never read"]
    with pytest.raises(Refused) as refused:
        asyncio.run(whole(body_of(parts(*left), 5, 1.0, 1000)))
    assert refused.value.status_code == 413 and refused.value.headers["connection"] == "close"


def test_a_body_that_trickles_is_cut_off_and_one_that_flows_is_not():
    with pytest.raises(Refused) as refused:
        asyncio.run(whole(body_of(parts(*[b"a"] * 50, every=0.02), 10**6, 0.1, 1000)))
    assert refused.value.status_code == 408
    flowing = [b"a" * 100] * 25
    assert len(asyncio.run(whole(body_of(parts(*flowing, every=0.02), 10**6, 0.1, 1000)))) == 2500


def test_no_body_takes_longer_than_the_longest_time():
    """However fast it flows, and however much is announced."""
    body = Body(parts(*[b"a" * 1000] * 200, every=0.02), Headers({"transfer-encoding": "chunked"}), 10**6, 1.0, 10, 0.3)
    start = time.monotonic()
    with pytest.raises(Refused) as refused:
        asyncio.run(whole(body))
    assert refused.value.status_code == 408 and 0.2 < time.monotonic() - start < 2


def test_a_body_that_is_empty_has_an_end_and_then_the_client_leaves():
    async def run():
        messages = [{"type": "http.request"}, {"type": "http.disconnect"}]

        async def receive():
            await asyncio.sleep(0.01)
            return messages.pop(0)

        body = Body(receive, Headers({}), 10, 1.0, 10)
        leaving = asyncio.create_task(body.client_left())
        first = await asyncio.wait_for(body.receive(), 1)
        assert first == {"type": "http.request", "body": b"", "more_body": False} and not body.left
        assert (await asyncio.wait_for(body.receive(), 1))["type"] == "http.disconnect" and body.left
        await leaving

    asyncio.run(run())


def test_the_time_that_a_client_takes_is_known():
    async def run():
        body = body_of(parts(b"a", b"b", every=0.05), 10, 1.0, 1000)
        assert body.waited() == 0
        asking = asyncio.create_task(body.receive())
        await asyncio.sleep(0.02)
        assert 0.01 < body.waited() < 0.05
        await asking
        await body.receive()
        return body.waited()

    assert 0.1 <= asyncio.run(run()) < 0.5
