"""What the service counts, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one service."""

    def __init__(self, pictures: Callable[[], Mapping[str, int]]):
        """`pictures`: how many each library holds now, by its name."""
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, processor time and open files, where the system tells
        self._registry.register(_Pictures(pictures))
        self._requests = Counter(
            "cliplet_requests", "Requests that were answered.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "cliplet_request_seconds",
            "From a request's headers to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "cliplet_batch_size",
            "Texts or pictures that a model was given at once.",
            ("kind",),
            buckets=SIZES,
            registry=self._registry,
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts an answer; status 499 is that of a client that left before it."""
        method = method if method in ("GET", "HEAD", "POST") else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, kind: str, size: int) -> None:
        """Counts a batch of a model, of "text" or "picture"."""
        self._batches.labels(kind).observe(size)

    def text(self) -> bytes:
        """All of it, of the type `CONTENT_TYPE`."""
        return generate_latest(self._registry)


class _Pictures(Collector):
    def __init__(self, pictures: Callable[[], Mapping[str, int]]):
        self._pictures = pictures

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("cliplet_pictures", "Pictures that a library holds.", labels=("library",))
        for name, count in self._pictures().items():
            family.add_metric((name,), count)
        yield family
