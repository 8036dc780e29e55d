"""All that is served: libraries by name, the models that they share, and the threads that do the work."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from weakref import WeakValueDictionary

from cliplet.errors import ConfigError, DataError, nearest
from cliplet.library.library import Library
from cliplet.library.store import CREATE_HINT
from cliplet.runtime.cores import cores
from cliplet.serve.libraries import Served
from cliplet.serve.metrics import Metrics
from cliplet.serve.model import Model
from cliplet.serve.pools import Pool, Pools
from cliplet.serve.refusals import Refused
from cliplet.serve.settings import Settings
from cliplet.serve.uploads import Receiving

NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,100}")
MOST_SLOW = 4  # threads that decode pictures: each may need a gigabyte
READING = 4  # threads that wait for the disk


class Service:
    """All that is served."""

    def __init__(self, libraries: Mapping[str, Library], settings: Settings, metrics: Metrics):
        """`libraries`: by name. Opens their models: one that several libraries share is opened once.

        Raises ConfigError for names that cannot be, DataError and ModelError for libraries without a model.
        """
        for name in libraries:
            refuse_bad_name(name)
        slow = max(1, min(MOST_SLOW, cores() - 1))
        self._pools = Pools(
            # One more than a client gets, so that no searches of one client keep all others from theirs.
            quick=Pool("quick", settings.workers + 1, settings.workers),
            # Here there is no memory for one more; but whoever asks gets the next thread that is free.
            slow=Pool("slow", slow, slow),
            files=Pool("files", READING, READING - 1),
        )
        self._settings, self._metrics = settings, metrics
        self._models: WeakValueDictionary[object, Model] = WeakValueDictionary()
        self._opening = threading.Lock()
        receiving = Receiving()
        self._served = {
            name: Served(name, library, self.model_of, self._pools, settings, receiving)
            for name, library in libraries.items()
        }

    def model_of(self, library: Library) -> Model:
        """The open model of a library's vectors. Raises DataError where it has none yet, ModelError."""
        identity = library.identity
        if identity is None:
            raise DataError(f"{library.store.place}: holds no pictures yet", CREATE_HINT)
        key = (*sorted(identity.hashes.items()), identity.dims, identity.engine, identity.precision)
        with self._opening:
            model = self._models.get(key)
            if model is None:
                model = Model(library.encoder, identity, self._settings, self._pools, self._metrics)
                self._models[key] = model
            return model

    def all(self) -> list[Served]:
        """In the order in which they were given."""
        return list(self._served.values())

    def library(self, name: str) -> Served:
        """Raises Refused where there is none of that name."""
        if name not in self._served:
            raise Refused(404, "there is no such library", nearest(name[:100], self._served))
        return self._served[name]

    def sizes(self) -> dict[str, int]:
        """How many pictures each holds."""
        return {name: len(served.library) for name, served in self._served.items()}

    def close(self, seconds: float) -> tuple[str, ...]:
        """Begins nothing more, and waits for what runs, no longer than so many seconds: a decoder cannot be stopped.

        Which kinds of threads still run after it, as `Pools` names them; "quick" and "files" may be at the libraries.
        """
        pools, end = (self._pools.quick, self._pools.files, self._pools.slow), time.monotonic() + seconds
        for pool in pools:
            pool.end()
        return tuple(pool.name for pool in pools if not pool.wait(end))


def refuse_bad_name(name: str) -> None:
    """Raises ConfigError for a name that cannot stand in an address."""
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise ConfigError(f"{name!r} cannot be a library's name here", "Name it: NAME=LIBRARY, without slashes.")
