"""What a service may be told, and the limits that it holds to."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass

from cliplet.errors import ConfigError
from cliplet.runtime.cores import cores

MIN_TOKEN = 16  # letters; a shorter one is soon guessed

# What one request may ask for, beside what a library takes.
MAX_TEXTS = 256
MAX_FILTER = 4000  # letters
MAX_JSON = 256 * 2**10  # bytes of a body without a picture: 16 terms of 2,000 letters that JSON writes as \\uXXXX
MAX_JSON_TEXTS = 4 * 2**20  # of texts to embed, likewise
MAX_JSON_SESSION = 4 * 2**10  # of a token, which strangers may send too
THREADS_SECONDS = 0.8  # that what runs in threads gets after all else when the service is stopped
MAX_HEAD = 32 * 2**10  # bytes of a request's first line and headers
PUBLIC_NAME = re.compile(r"(?!-)[a-z0-9-]+(\.[a-z0-9-]+)*(:\d{1,5})?", re.IGNORECASE)


@dataclass(frozen=True)
class Settings:
    """How a service listens, and how much it takes. Seconds, bytes and pixels."""

    host: str = "127.0.0.1"
    port: int = 8300  # 0: any that is free
    token: str = ""  # what clients have to show; without one, anybody on this machine may ask
    names: tuple[str, ...] = ()  # by which a proxy that ends TLS is asked: photos.example.org; they need a token
    max_body: int = 32 * 2**20
    max_pixels: int = 64_000_000  # of a picture that is sent
    rate: float = 200.0  # requests a second of one client; 0: as many as come
    burst: int = 600  # requests at once of a client that was quiet before
    refused_tokens: int = 20  # wrong ones of one client in a minute
    request_seconds: float = 30.0  # until an answer begins
    head_seconds: float = 10.0  # until a request's headers are there
    body_seconds: float = 10.0  # until a body is there, and a second more for each `body_rate` of it
    body_rate: int = 64 * 2**10  # bytes a second
    body_most_seconds: float = 120.0  # that no body may take longer than, however it comes
    write_seconds: float = 30.0  # that a client may leave an answer unread
    idle_seconds: float = 15.0  # that a connection stays open between requests
    stop_seconds: float = 5.0  # until it has ended when it is stopped; the last one is for what runs in threads
    max_connections: int = 512
    max_connections_of_one: int = 256
    thumbnail_side: int = 512  # pixels of the longer side: twice what the page shows them at, for fine screens
    thumbnail_bytes: int = 2 * 2**30  # of one library that are kept, about
    uploads: int = 1000  # pictures that are remembered
    upload_seconds: float = 1800.0  # that each of them is
    texts_kept: int = 4096  # whose vectors are remembered, of each model
    batch: int = 32  # texts that the model gets at once
    threads: int = 0  # that search and embed texts for one client; 0: as many as there are cores
    refresh_seconds: float = 2.0  # between two looks at what another process has added
    log: bool = False  # a line for each request

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"--port must be from 0 to 65535, got {self.port}")
        if self.token and (len(self.token) < MIN_TOKEN or not self.token.isascii() or not self.token.isprintable()):
            raise ConfigError(
                f"a token has at least {MIN_TOKEN} letters, all of them plain", "Without one, the service makes one."
            )
        for name in self.names:
            if not PUBLIC_NAME.fullmatch(name):
                raise ConfigError(
                    f"--name {name}: is no name of a host",
                    "Give it without https:// and path: photos.example.org.",
                )
        if not (math.isfinite(self.rate) and self.rate >= 0):
            raise ConfigError(f"--rate must be 0 or more, got {self.rate}")

    @property
    def workers(self) -> int:
        """Threads that search and embed texts for one client; there is one more, for all others."""
        return self.threads or cores()


def is_loopback(address: str) -> bool:
    """Whether an address, in numbers, is this machine's alone."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False
