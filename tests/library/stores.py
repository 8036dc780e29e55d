"""A store of either kind, filled with vectors that no model made. N pictures, D dims."""

import hashlib
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest

from cliplet.library.records import Identity
from cliplet.library.store import Entry, create_store, open_store

DIMS = 16
KINDS = ("local", "lance")


def place_of(kind: str, folder: Path) -> str:
    """Where a store of that kind is made."""
    return f"lance:{folder / 'tables'}" if kind == "lance" else str(folder / "files")


def identity(name="a model", dims=DIMS, **more):
    return Identity(
        source=name, hashes={"config.json": name}, dims=dims, engine="onnxruntime", precision="fp32", **more
    )


def content_of(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def vector(seed: int, dims=DIMS) -> np.ndarray:
    """Of unit length, in half precision already, so that all kinds of stores hold the same."""
    random_D = np.random.default_rng(seed).standard_normal(dims)
    return (random_D / np.linalg.norm(random_D)).astype(np.float16).astype(np.float32)


def entry(number: int, *, path="", content="", features=True, id=None, captions=None, **columns) -> Entry:
    """A picture as a run would write it."""
    values = {"format": "jpeg", "width": 100 + number, "height": 80, "year": 2000 + number, "tags": (f"tag {number}",)}
    return Entry(
        path=path or f"/photos/{number:03d}.jpg",
        bytes=1000 + number,
        changed=10**9 * number,
        content=content_of(content or f"picture {number}"),
        columns={"own_captions": (), **values, **columns},
        captions=captions,
        features_D=vector(number) if features else None,
        id=id,
    )


def filled(kind: str, folder: Path, entries=(), problems=(), roots=("/photos",)):
    """A store with these pictures, open for reading."""
    store = create_store(place_of(kind, folder))
    with store.writing(print) as writer:
        writer.begin(identity())
        writer.add_roots(roots)
        writer.write(list(entries), list(problems))
    store.refresh()
    return store


def changed(store, change):
    """Lets `change(writer)` write with the store's own model, and has the store see it."""
    with store.writing(print) as writer:
        writer.begin(store.identity)
        result = change(writer)
    store.refresh()
    return result


def reopened(store):
    store.close()
    return open_store(store.place)


@contextmanager
def s3_server():
    """A server that speaks S3, and the place of an empty bucket in it."""
    pytest.importorskip("moto.server")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    log = subprocess.DEVNULL
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urlopen(Request(f"{address}/bucket", method="PUT"))
                break
            except OSError:
                time.sleep(0.2)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (("ENDPOINT_URL", address), ("REGION", "us-east-1")):
                patch.setenv(f"AWS_{name}", value)
            patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
            yield "lance:s3://bucket"
    finally:
        server.terminate()
        server.wait()
