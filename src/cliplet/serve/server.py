"""A service that runs: its socket, its signals, and what it says when it is ready."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import uvicorn

from cliplet.errors import ConfigError
from cliplet.serve.access import new_token
from cliplet.serve.app import create_app
from cliplet.serve.connections import protocol_for
from cliplet.serve.refusals import log
from cliplet.serve.settings import MAX_HEAD, THREADS_SECONDS, Settings, is_loopback

if TYPE_CHECKING:
    from cliplet.library.library import Library


class Ended(NamedTuple):
    """How a service ended."""

    interrupted: bool  # by SIGINT
    still_runs: tuple[str, ...]  # the kinds of threads, as `Pools` names them, that could not be waited for


LAST_SECONDS = THREADS_SECONDS + 0.4  # of stopping, when no more requests are waited for; uvicorn looks now and then
WORK = {"quick": "a search", "files": "the reading of a file", "slow": "the decoding of a picture, or many texts"}


def serve(
    libraries: Mapping[str, Library],
    settings: Settings,
    say: Callable[[str], None] = print,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serves until SIGTERM, or until SIGINT, of which it raises KeyboardInterrupt when all has ended.

    `libraries`: by the names that they get in addresses. `say` hears what is served and where; `ready` the address,
    with the token in it, once the service can be asked. Raises ConfigError where it cannot listen.
    """
    if run(libraries, settings, say, ready).interrupted:
        raise KeyboardInterrupt


def run(
    libraries: Mapping[str, Library],
    settings: Settings,
    say: Callable[[str], None] = print,
    ready: Callable[[str], None] = lambda address: None,
) -> Ended:
    """As `serve`, and says how it ended: Python itself would wait for threads without a bound."""
    listening = listen(settings.host, settings.port)
    with listening:
        host, port = listening.getsockname()[:2]
        if not is_loopback(host) and not settings.token:
            settings = replace(settings, token=new_token())
        _log_to_standard_error()
        app = create_app(libraries, settings, host)
        server = Server(server_config(app, settings))
        server.when_started = lambda: _announce(libraries, settings, host, port, say, ready)
        server.run([listening])
    still_runs = app.state.service.close(0.0)
    if still_runs:
        log.warning("stopped while something still ran: %s", ", ".join(WORK[name] for name in still_runs))
    return Ended(server.interrupted, still_runs)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ConfigError that says why it cannot."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: there is no such address here: {error}") from None
    family, _, _, _, address = found[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there it would let two services share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
        listening.set_inheritable(False)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is taken", "Name another one with --port, or 0 for any that is free."
            ) from None
        raise ConfigError(f"cannot listen on port {port} of {host}: {error.strerror}") from None
    return listening


def page_address(host: str, port: int, token: str) -> str:
    """Where the page is. The token stands behind a #, which browsers keep to themselves."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/{_fragment(token)}"


def _fragment(token: str) -> str:
    return f"#token={quote(token, safe='')}" if token else ""


def server_config(app: Any, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs the application: by our own connections, and without its log."""
    return uvicorn.Config(
        app,
        http=protocol_for(settings),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # else any client on this machine could call itself another
        timeout_keep_alive=int(settings.idle_seconds),
        timeout_graceful_shutdown=max(0.0, settings.stop_seconds - LAST_SECONDS),  # type: ignore[arg-type]  # parts are taken
        h11_max_incomplete_event_size=MAX_HEAD,
    )


class Server(uvicorn.Server):
    """uvicorn's server with our own signals: SIGTERM is a good end, SIGINT is told to whoever called."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self.interrupted = False
        self.when_started: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says so."""
        await super().startup(sockets)
        self.when_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """While the block runs. uvicorn's own would end the process by the signal itself."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if self.should_exit:  # asked a second time: at once
            self.force_exit = True
        self.interrupted = self.interrupted or sig == signal.SIGINT
        self.should_exit = True


def _announce(
    libraries: Mapping[str, Library],
    settings: Settings,
    host: str,
    port: int,
    say: Callable[[str], None],
    ready: Callable[[str], None],
) -> None:
    for name, library in libraries.items():
        say(f"{name}: {len(library):,} pictures")
    reached = socket.gethostname() if host in ("0.0.0.0", "::") else host
    address = page_address(reached, port, settings.token)
    for name in settings.names:
        say(f"behind a proxy: https://{name}/{_fragment(settings.token)}")
    say(f"ready at {address}")
    ready(address)


def _log_to_standard_error() -> None:
    """Only what the service itself says: errors with their numbers, and requests where they are asked for."""
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.getLogger("uvicorn.error").disabled = True  # what goes wrong in a request is said by the guard
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # clients are told of their bad forms
