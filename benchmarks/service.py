"""How a service answers when many ask at once: text queries at a steady rate, whatever it answers (an open loop).

    python benchmarks/service.py --library photos.library [--texts captions.txt] [--rate 50] [--minutes 10]
        [--connections 50] [--kill] [--port 0]

Starts `cliplet serve` in a process of its own and asks it so many different queries a second over connections that stay
open. A query counts from the moment when it was due, so that a service that falls behind shows. Told are the median and
the 95th and 99th hundredth of the times, errors, and what the service holds in memory after each minute.

`--kill`: half-way it is ended by SIGKILL while it answers, and started again; it must then find what it found before,
as must the library itself. Queries that were under way are not counted as errors, nor those until it is ready again.

`--texts`: a file with a sentence a line; without it they are made from words. None is asked twice.

Exit status 1 where an aim is missed: 150 ms for 95 of 100 queries, no error, memory that grows by less than 5 % after
the first fifth.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

P95, GROWTH, FIRST_PART = 150.0, 1.05, 0.2
CHECKED = 20  # queries whose answers are held against those of before
SUBJECTS = """dog cat horse child man woman bird car boat bicycle train house tree flower cake ball kite guitar bridge
 lamp chair cow goat bus truck"""
VERBS = "running standing sleeping jumping waiting playing swimming climbing sitting flying eating dancing"
PLACES = "on the beach|in the snow|at night|in a park|by the river|on a street|in the mountains|under a tree"
COLOURS = "red blue green yellow white black brown orange grey purple"


def sentences(file: Path | None) -> Iterator[str]:
    """Different ones, without an end."""
    if file:
        yield from dict.fromkeys(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    chance = random.Random(0)
    parts = [COLOURS.split(), SUBJECTS.split(), VERBS.split(), PLACES.split("|")]
    for number in itertools.count():
        yield f"a {' '.join(map(chance.choice, parts))}, number {number}"


class Service:
    """`cliplet serve` in a process of its own."""

    def __init__(self, library: Path, port: int):
        start = time.perf_counter()
        words = [sys.executable, "-m", "cliplet", "serve", f"bench={library}", "--port", str(port), "--rate", "0"]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        line = ""
        while not line.startswith("ready at"):
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit("the service did not start")
        self.seconds = time.perf_counter() - start
        match = re.search(r":(\d+)/", line)
        assert match
        self.port = int(match[1])

    def memory(self) -> float:
        """MB that it holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(match[1]) / 1000 if match else 0.0

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        self.process.send_signal(how)
        return self.process.wait(60)


class Load:
    """Queries at a steady rate, over connections that stay open."""

    def __init__(self, port: int, rate: float, connections: int, texts: Iterator[str]):
        self.port, self.rate, self.connections, self.texts = port, rate, connections, texts
        self.milliseconds: list[float] = []
        self.errors: list[str] = []
        self.forgiving = False  # while the service is being killed

    async def run(self, seconds: float) -> None:
        """Asks for so long; the last answers are waited for."""
        due: asyncio.Queue[float | None] = asyncio.Queue()
        workers = [asyncio.create_task(self._work(due)) for _ in range(self.connections)]
        start = time.perf_counter()
        for number in range(int(seconds * self.rate)):
            moment = start + number / self.rate
            wait = moment - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            due.put_nowait(moment)
        for _ in workers:
            due.put_nowait(None)
        await asyncio.gather(*workers)

    async def _work(self, due: asyncio.Queue[float | None]) -> None:
        connection = Connection(self.port)
        while (moment := await due.get()) is not None:
            forgiven = self.forgiving
            try:
                body = await connection.get(f"/api/bench/search?k=20&q={quote(next(self.texts))}")
                if b'"hits":[{' not in body:
                    raise OSError(body[:200].decode())
                if not (forgiven or self.forgiving):
                    self.milliseconds.append(1000 * (time.perf_counter() - moment))
            except (OSError, asyncio.IncompleteReadError) as error:
                connection.close()
                if not (forgiven or self.forgiving):
                    self.errors.append(repr(error))
        connection.close()


class Connection:
    """One that stays open from request to request; where it was closed between two, another is opened."""

    def __init__(self, port: int):
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str) -> bytes:
        """The content of a good answer. Raises OSError, IncompleteReadError."""
        used = self._streams is not None
        try:
            return await self._get(path)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            self.close()
            if not used or getattr(error, "partial", b""):
                raise
            return await self._get(path)

    async def _get(self, path: str) -> bytes:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        if not head.startswith(b"HTTP/1.1 200"):
            raise OSError(head.partition(b"\r\n")[0].decode() + body[:200].decode())
        return body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


def answers(port: int) -> list[object]:
    """What the service finds for a few queries."""
    found = []
    for text in itertools.islice(sentences(None), CHECKED):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/bench/search?q={quote(text)}") as answer:
            found.append([(hit["id"], round(hit["score"], 4)) for hit in json.load(answer)["hits"]])
    return found


async def measure(
    service: Service, load: Load, minutes: float, kill: bool, library: Path
) -> tuple[list[float], Service]:
    """The service's memory after each minute, or tenth of a shorter time, and the service that ran at last."""
    before = answers(service.port)
    memory = [service.memory()]
    step = min(60.0, minutes * 6)
    start = time.perf_counter()
    running = asyncio.create_task(load.run(minutes * 60))
    killed = not kill
    for number in range(round(minutes * 60 / step)):
        await asyncio.sleep(start + (number + 1) * step - time.perf_counter())  # at once, when that has passed
        if not killed and number + 1 >= minutes * 30 / step:
            killed = True
            service = await asyncio.to_thread(killed_and_started, service, load, library)
            same = await asyncio.to_thread(answers, service.port) == before
            print(f"killed, and ready again after {service.seconds:.2f} s; answers as before: {same}")
            if not same:
                load.errors.append("other answers than before the kill")
            memory = []
        memory.append(service.memory())
        print(f"{(time.perf_counter() - start) / 60:5.1f} min  {memory[-1]:7.1f} MB  {told(load)}", flush=True)
    await running
    return memory, service


def killed_and_started(service: Service, load: Load, library: Path) -> Service:
    """A new service at the same port, once the old one was ended in the middle of its work."""
    load.forgiving = True
    service.stop(signal.SIGKILL)
    again = Service(library, service.port)
    time.sleep(0.5)  # queries that were due meanwhile are answered
    load.forgiving = False
    return again


def told(load: Load) -> str:
    if len(load.milliseconds) < 2:
        return f"{len(load.errors)} errors"
    parts = statistics.quantiles(load.milliseconds, n=100)
    p50, p95, p99 = parts[49], parts[94], parts[98]
    return f"p50 {p50:.1f} ms, p95 {p95:.1f}, p99 {p99:.1f} of {len(load.milliseconds):,}; {len(load.errors)} errors"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--texts", type=Path, help="a sentence a line")
    parser.add_argument("--rate", type=float, default=50.0, help="queries a second")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args()
    service = Service(options.library, options.port)
    print(f"ready after {service.seconds:.2f} s")
    load = Load(service.port, options.rate, options.connections, sentences(options.texts))
    try:
        memory, service = asyncio.run(measure(service, load, options.minutes, options.kill, options.library))
    finally:
        status = service.stop() if service.process.poll() is None else None
    settled = memory[int(len(memory) * FIRST_PART)]
    growth = max(memory) / settled
    p95 = statistics.quantiles(load.milliseconds, n=100)[94]
    print(
        f"{told(load)}\nmemory {settled:.1f} MB after the first fifth, at most {max(memory):.1f}; exit status {status}"
    )
    for error in load.errors[:10]:
        print(f"error: {error}")
    missed = [
        told
        for told, wrong in (
            (f"95 of 100 within {P95:g} ms", p95 > P95),
            ("no error", bool(load.errors)),
            (f"memory flat to {GROWTH - 1:.0%}", growth > GROWTH),
            ("a clean stop", status != 0),
        )
        if wrong
    ]
    print("missed: " + ", ".join(missed) if missed else "all aims met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
