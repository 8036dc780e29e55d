"""What makes a test of a whole run quick, and runs that go wrong."""

from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from cliplet.errors import ImageError
from cliplet.library import adding, bulk, fit, indexing
from cliplet.library.bulk_worker import Reading


def few_sentences(monkeypatch):
    """A library is judged by three sentences instead of hundreds."""
    monkeypatch.setattr(adding, "everyday_queries", lambda: ["a bus", "a cake on a table", "two dogs"])
    monkeypatch.setattr(fit, "unseen_sentences", lambda: ["the square root of two", "why not", "honesty"])


@contextmanager
def refusing(*names):
    """Files of these names give an error of the disk."""
    read, content_of = indexing.read_file, indexing.content_of_file

    def failing(path):
        if Path(path).name in names:
            raise ImageError(f"{path}: cannot be read: Input/output error")
        return read(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexing, "read_file", failing)
        patch.setattr(indexing, "content_of_file", lambda path: None if Path(path).name in names else content_of(path))
        yield


@contextmanager
def workers_here():
    """The workers of `bulk.RayIndexing` are called in this process instead of by Ray."""

    def reports(cluster, job, blocks):
        worker = Reading(job)
        for block in blocks:
            for report in worker(block).to_pylist():
                yield report["said"], report["features"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "running", lambda: nullcontext(bulk.Cluster(None, True, 2)))
        patch.setattr(bulk, "_reports", reports)
        yield
