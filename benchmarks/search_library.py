"""A library over real pictures: indexing, looking again, starting cold, and telling when nothing fits.

Parts of benchmarks/search.py, which says how to call them.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from cliplet.data.readers import read_source
from cliplet.library import Library
from cliplet.library.scan import look
from cliplet.library.store import Known

SLOWER, AGAIN, STATS, COLD = 1.15, 3.0, 5.0, 1.0
CLIPLET = [sys.executable, "-m", "cliplet"]
CONCEPTS = (
    *("dog", "snow", "beach", "bicycle", "soccer|football", "water", "mountain", "horse", "guitar", "car"),
    *("skateboard", "pool", "climb", "rope", "kitchen", "bridge", "motorcycle", "ball", "swing", "boat"),
)


def index(data: Path, model: Path, folder: Path, rounds: int) -> bool:
    """The time of `cliplet index` beside that of `cliplet embed`, in turns; a second run; many empty-handed looks."""
    pictures = data / "images"
    ratios, seconds, again = [], [], []
    for number in range(rounds):
        out, library = folder / "vectors.npy", folder / "bench.library"
        shutil.rmtree(library, ignore_errors=True)
        for left in folder.glob("vectors.npy*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        embed = timed([*CLIPLET, "embed", str(pictures), "-m", str(model), "-o", str(out), "--half"])
        whole = timed([*CLIPLET, "index", str(pictures), "--library", str(library), "-m", str(model)])
        again.append(timed([*CLIPLET, "index", "--library", str(library)]))
        ratios.append(whole / embed)
        seconds.append((embed, whole))
        print(f"  round {number + 1}: embed {embed:.1f} s, index {whole:.1f} s, again {again[-1]:.2f} s", flush=True)
    count = len(Library.open(library))
    print(f"{count:,} pictures: index takes {statistics.median(ratios):.3f} of embed (aim {SLOWER})")
    print(f"a second run: {statistics.median(again):.2f} s (aim {AGAIN})")
    looked = many_looks(folder)
    print(f"100,000 empty-handed stats: {looked:.2f} s (aim {STATS})")
    return statistics.median(ratios) <= SLOWER and statistics.median(again) < AGAIN and looked < STATS


def many_looks(folder: Path) -> float:
    """Seconds of a look at 100,000 files that have not changed."""
    many = folder / "many"
    if not many.is_dir():
        for part in range(100):
            (many / str(part)).mkdir(parents=True)
            for number in range(1000):
                (many / str(part) / f"{number}.jpg").touch()
    paths = [str(path) for path in many.rglob("*.jpg")]
    known = {path: Known(row, 0, os.stat(path).st_mtime_ns, True) for row, path in enumerate(paths)}
    began = time.monotonic()
    scan = look([str(many)], known, {})
    assert scan.unchanged == 100_000
    return time.monotonic() - began


def start(library: Path, rounds: int, peer: str) -> bool:
    """Whole processes of `cliplet search`, from a cold start of Python to the printed hits. `peer`: a command of
    another tool, which runs in the same rounds."""
    ours, theirs = [], []
    queries = ["a dog in the snow", "two people on a beach", "a red car", "children playing football"]
    for number in range(rounds):
        ours.append(timed([*CLIPLET, "search", str(library), queries[number % len(queries)]]))
        if peer:
            theirs.append(timed([*peer.split(), queries[number % len(queries)]]))
    print(f"cliplet search: median {statistics.median(ours):.3f} s, {min(ours):.3f} to {max(ours):.3f} (aim {COLD})")
    if theirs:
        print(f"{peer}: median {statistics.median(theirs):.3f} s, {min(theirs):.3f} to {max(theirs):.3f}")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "cliplet", "search", str(library), "a dog"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = re.search(r"\| +torch$", done.stderr, re.M)
    print(f"torch imported: {'yes' if imported else 'no'}")
    return statistics.median(ours) < COLD


def fits(data: Path, model: Path, folder: Path) -> bool:
    """How often "nothing fits" is said where nothing does, and where something does.

    For each concept a library without the pictures whose captions name it, of the validation pictures; its queries are
    captions that name the concept (nothing fits) and as many captions of pictures that are there (something fits).
    """
    source = read_source(data / "dataset_flickr8k.json")
    records = [record for record in source.records if record.split == "val"]
    rng = random.Random(0)
    said = {"there": [], "away": []}
    fit = {"there": [], "away": []}
    place = folder / "fits.library"
    shutil.rmtree(place, ignore_errors=True)
    with Library.create(place, model) as library:
        pictures = folder / "fits-pictures"
        shutil.rmtree(pictures, ignore_errors=True)
        pictures.mkdir(parents=True)
        by_path = {pictures / Path(record.image).name: record for record in records}
        for path, record in by_path.items():
            os.link(record.image, path) if same_disk(record.image, pictures) else shutil.copy(record.image, path)
        library.add(pictures)
        for concept in CONCEPTS:
            named = re.compile(rf"\b({concept})", re.I)
            away = {path for path, record in by_path.items() if any(named.search(text) for text in record.captions)}
            hidden = folder / "hidden"
            hidden.mkdir(exist_ok=True)
            for path in away:
                path.rename(hidden / path.name)
            library.add()
            absent = [text for path in away for text in by_path[path].captions if named.search(text)]
            present = [text for path, record in by_path.items() if path not in away for text in record.captions]
            for kind, texts in (("away", absent), ("there", present)):
                for text in rng.sample(texts, min(40, len(texts))):
                    hits = library.search(text, k=10)
                    said[kind].append(hits.nothing_fits)
                    fit[kind].append(hits[0].fit)
            for path in away:
                (hidden / path.name).rename(path)
        library.add()
        from cliplet.library.background import unseen_sentences

        nonsense = [library.search(text).nothing_fits for text in unseen_sentences()]
    print(f"{len(said['away'])} captions whose concept is not in the library: nothing fits {share(said['away'])}")
    print(f"{len(said['there'])} captions of pictures that are there: nothing fits {share(said['there'])}")
    print(f"{len(nonsense)} sentences that no photograph shows: nothing fits {share(nonsense)}")
    print(f"median fit of the best: {np.median(fit['there']):.1f} % there, {np.median(fit['away']):.1f} % away")
    print(json.dumps({"there": float(np.mean(said["there"])), "away": float(np.mean(said["away"]))}))
    return float(np.mean(said["there"])) < float(np.mean(said["away"]))


def share(said: list[bool]) -> str:
    return f"{100 * float(np.mean(said)):.0f} %"


def same_disk(file: str, folder: Path) -> bool:
    return os.stat(file).st_dev == os.stat(folder).st_dev


def timed(command: list[str]) -> float:
    """Seconds of a whole process. Raises CalledProcessError."""
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began
