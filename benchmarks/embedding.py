"""How fast pictures and sentences become vectors, beside PyTorch, open_clip and sentence-transformers.

    python benchmarks/embedding.py [pictures] [texts] [start] [memory] [install] --data path/to/flickr8k
        [--models runs/bench-embedding] [--rounds 3] [--pictures 1000] [--texts 10000]

`pictures`: JPEG files through TinyViT-11M at 224 pixels (recipe tinyvit-minilm-convffn). `cliplet embed` with the model
exported in float32 (and the same in bf16) and in 8 bits; the engines alone on batches that lie ready; the plain PyTorch
way; open_clip as its README shows it, around the same tower; sentence-transformers with a ViT of the same size. They
take turns, each in a process of its own; ratios are of the same round.

`texts`: captions through all-MiniLM-L6-v2: Encoder.encode_text beside sentence-transformers, and how far their vectors
are from each other. `8 bits, 0.999` is exported with --min-cosine 0.999.

`start`: whole processes of `cliplet embed --text`, from start to vector, and of `cliplet --help`.

`memory`: 20,000 small pictures; what the process holds by a quarter of the time, and at the most.

`install`: a virtual environment with cliplet and OpenVINO and nothing else: its size, and what of it imports torch.

Exit status 1 where an aim is missed: `cliplet embed` 5 times plain PyTorch in 8 bits and 85 % of its engine alone;
texts 3 times sentence-transformers at a cosine of 0.999; 0.6 s to the first vector and 0.3 s for help; memory that
grows by less than 5 %; 500 MB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import embedding_peers as peers
import numpy as np

ROOT = Path(__file__).parent.parent
FASTER, OF_ENGINE, TEXTS_FASTER, CLOSE = 5.0, 0.85, 3.0, 0.999
PLAIN, CLOSE_TEXTS = "plain PyTorch, float32", "cliplet, 8 bits, 0.999"
FIRST_VECTOR, HELP, GROWTH, INSTALLED = 0.6, 0.3, 1.05, 500.0
Work = Callable[..., tuple[float, np.ndarray]]


def alone(work: Work, *arguments: Any) -> tuple[float, np.ndarray]:
    """What `work` gives in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def rounds_of(works: dict[str, tuple[Work, Sequence[Any], str]], rounds: int) -> tuple[dict[str, list[float]], dict]:
    """Speeds of each by round, and the last round's rows."""
    speeds: dict[str, list[float]] = {name: [] for name in works}
    rows = {}
    for _ in range(rounds):
        for name, (work, inputs, model) in works.items():
            speed, rows[name] = alone(work, inputs, model)
            speeds[name].append(speed)
            print(f"    {name}: {speed:,.1f}/s", file=sys.stderr, flush=True)
    return speeds, rows


def ratio(speeds: dict[str, list[float]], one: str, other: str) -> str:
    values = [a / b for a, b in zip(speeds[one], speeds[other], strict=True)]
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def median_ratio(speeds: dict[str, list[float]], one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(speeds[one], speeds[other], strict=True))


def models(folder: Path, data: str) -> dict[str, Path]:
    """The models, made and exported once."""
    from cliplet.cli import main

    places = {name: folder / name for name in ("tinyvit", "tinyvit-int8", "minilm", "minilm-int8")}
    for name, make in (("tinyvit", peers.tinyvit), ("minilm", peers.minilm)):
        if not places[name].exists():
            make(places[name])
            main(["export", str(places[name])])
        small = places[f"{name}-int8"]
        if not small.exists():
            # The weights of the picture towers are random, so R@1 is at chance whatever is done to it.
            words = ["--int8", "--data", data, "--samples", "100", "--out", str(small), "--max-loss", "100"]
            main(["export", str(places[name]), *words])
    close = places["minilm-close"] = folder / "minilm-close"
    if not close.exists():
        words = ["--int8", "--data", data, "--samples", "100", "--out", str(close), "--max-loss", "100"]
        main(["export", str(places["minilm"]), *words, "--min-cosine", str(CLOSE)])
    return places


def pictures(places: dict[str, Path], files: list[str], rounds: int) -> bool:
    plain, small = str(places["tinyvit"]), str(places["tinyvit-int8"])
    works: dict[str, tuple[Work, Sequence[Any], str]] = {
        PLAIN: (peers.plain_torch, files, plain),
        "open_clip, float32": (peers.open_clip_readme, files, plain),
        "sentence-transformers": (peers.sentence_transformers_pictures, files, plain),
        "cliplet embed, float32": (partial(peers.cliplet_command, precision="fp32"), files, plain),
        "engine alone, float32": (partial(peers.engine_alone, precision="fp32"), files, plain),
        "cliplet embed, bf16": (partial(peers.cliplet_command, precision="bf16"), files, plain),
        "engine alone, bf16": (partial(peers.engine_alone, precision="bf16"), files, plain),
        "cliplet embed, 8 bits": (peers.cliplet_command, files, small),
        "engine alone, 8 bits": (peers.engine_alone, files, small),
    }
    speeds, rows = rounds_of(works, rounds)
    print(f"\n{len(files):,} pictures, TinyViT-11M at 224 pixels")
    expected = rows[PLAIN]
    for name, values in speeds.items():
        line = f"  {name:<24}{statistics.median(values):8.1f} pictures/s   x plain {ratio(speeds, name, PLAIN)}"
        if name.startswith("cliplet"):
            cosines = (rows[name] * expected).sum(axis=1)
            engine = name.replace("cliplet embed", "engine alone")
            line += f"   of its engine {ratio(speeds, name, engine)}"
            line += f"   cosine {cosines.mean():.5f}, least {cosines.min():.5f}"
        print(line)
    kinds = ("float32", "bf16", "8 bits")
    shares = [median_ratio(speeds, f"cliplet embed, {kind}", f"engine alone, {kind}") for kind in kinds]
    return (
        median_ratio(speeds, "cliplet embed, 8 bits", "plain PyTorch, float32") >= FASTER and min(shares) >= OF_ENGINE
    )


def texts(places: dict[str, Path], captions: list[str], rounds: int) -> bool:
    plain, small = str(places["minilm"]), str(places["minilm-int8"])
    works: dict[str, tuple[Work, Sequence[Any], str]] = {
        "sentence-transformers": (peers.sentence_transformers_texts, captions, plain),
        "cliplet, float32": (partial(peers.cliplet_texts, precision="fp32"), captions, plain),
        "cliplet, auto": (peers.cliplet_texts, captions, plain),
        "cliplet, 8 bits": (peers.cliplet_texts, captions, small),
        CLOSE_TEXTS: (peers.cliplet_texts, captions, str(places["minilm-close"])),
    }
    speeds, rows = rounds_of(works, rounds)
    print(f"\n{len(captions):,} captions, all-MiniLM-L6-v2")
    for name, values in speeds.items():
        cosines = (rows[name] * rows["sentence-transformers"]).sum(axis=1)
        print(
            f"  {name:<24}{statistics.median(values):8.0f} texts/s   x {ratio(speeds, name, 'sentence-transformers')}"
            f"   cosine {cosines.mean():.5f}, least {cosines.min():.5f}"
        )
    cosine = (rows[CLOSE_TEXTS] * rows["sentence-transformers"]).sum(axis=1).mean()
    return median_ratio(speeds, CLOSE_TEXTS, "sentence-transformers") >= TEXTS_FASTER and cosine >= CLOSE


def start(places: dict[str, Path], times: int = 11) -> bool:
    """Whole processes, by the clock outside of them."""
    command = str(Path(sys.executable).parent / "cliplet")
    words = ["embed", "--text", "a dog in the snow", "-m"]
    works = {
        "first vector, 8 bits": [*words, str(places["tinyvit-int8"])],
        "first vector, float32": [*words, str(places["tinyvit"])],
        "first vector, 8 bits, onnxruntime": [*words, str(places["tinyvit-int8"]), "--engine", "onnxruntime"],
        "cliplet --help": ["--help"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(times + 1):
        for name, arguments in works.items():
            began = time.perf_counter()
            subprocess.run([command, *arguments], check=True, capture_output=True)
            if number:  # the first one looks at engines and compiles, which is remembered
                seconds[name].append(time.perf_counter() - began)
    print(f"\nstart, {times} processes each")
    for name, values in seconds.items():
        print(f"  {name:<36}{statistics.median(values):.3f} s ({min(values):.3f} to {max(values):.3f})")
    code = "import sys, cliplet; cliplet.load(sys.argv[1]).encode_text(['a']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(places["tinyvit-int8"])], capture_output=True, text=True)
    print(f"  torch imported: {done.stdout.strip()}")
    first = min(statistics.median(seconds[f"first vector, {kind}"]) for kind in ("8 bits", "float32"))
    return first < FIRST_VECTOR and statistics.median(seconds["cliplet --help"]) < HELP and "False" in done.stdout


def memory(places: dict[str, Path], folder: Path, count: int = 20_000) -> bool:
    """The resident memory of `cliplet embed`, looked at as it goes."""
    files = list(peers.small_pictures(folder / "small", count))
    with tempfile.TemporaryDirectory() as out:
        (Path(out) / "list.txt").write_text("\n".join(files))
        words = ["embed", "--list", f"{out}/list.txt", "-m", str(places["minilm"]), "-o", f"{out}/rows.npy"]
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "cliplet"), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        seen: list[float] = []
        while process.poll() is None:
            seen.append(resident(process.pid))
            time.sleep(0.05)
    seen = [one for one in seen if one]
    early, most = max(seen[: len(seen) // 4]), max(seen)
    print(f"\nmemory, {count:,} pictures: {early:.0f} MB by a quarter of the time, {most:.0f} MB at the most")
    return process.returncode == 0 and most < GROWTH * early


def resident(process: int) -> float:
    try:
        text = Path(f"/proc/{process}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return 0.0


def install(places: dict[str, Path]) -> bool:
    """Installs into a new environment, measures it, and runs a model there."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        before = size_of(Path(folder))
        wanted = ["-q", "-c", str(ROOT / "constraints.txt"), f"{ROOT}[openvino]"]
        subprocess.run([python, "-m", "pip", "install", *wanted], check=True)
        size = size_of(Path(folder)) - before
        code = "import sys, cliplet; print(cliplet.load(sys.argv[1]).encode_text(['a']).shape, 'torch' in sys.modules)"
        done = subprocess.run(
            [python, "-c", code, str(places["tinyvit-int8"])], capture_output=True, text=True, cwd=folder
        )
        largest = sorted(
            (Path(folder) / "lib").glob("python*/site-packages/*"), key=lambda one: -size_of(one) if one.is_dir() else 0
        )
        parts = ", ".join(f"{one.name} {size_of(one):.0f}" for one in largest[:5])
    said = done.stdout.strip() or done.stderr.strip()[-200:]
    print(f"\ninstalled with OpenVINO: {size:.0f} MB ({parts}); there: {said}")
    return size < INSTALLED and "False" in done.stdout


def size_of(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink()) / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ["pictures", "texts", "start", "memory", "install"]
    parser.add_argument("parts", nargs="*", choices=[*names, []], default=[])
    parser.add_argument("--data", required=True, help="Flickr8k: a folder with images/ and Karpathy's JSON")
    parser.add_argument("--models", type=Path, default=Path("runs/bench-embedding"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--texts", type=int, default=10_000)
    options = parser.parse_args()
    packages = ("torch", "openvino", "onnxruntime", "open_clip_torch", "sentence-transformers")
    versions = ", ".join(f"{one} {version(one)}" for one in packages)
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {versions}")
    os.environ["HF_HUB_OFFLINE"] = "1"
    places = models(options.models, options.data)

    from cliplet.data.readers import read_source

    records = read_source(options.data).select("all")
    files = [record.image for record in records[: options.pictures]]
    captions = [caption for record in records[: options.texts // 5] for caption in record.captions]
    works: dict[str, Callable[[], bool]] = {
        "pictures": lambda: pictures(places, files, options.rounds),
        "texts": lambda: texts(places, captions, options.rounds),
        "start": lambda: start(places),
        "memory": lambda: memory(places, options.models),
        "install": lambda: install(places),
    }
    met = {name: bool(works[name]()) for name in options.parts or names}
    print("\n" + json.dumps(met))
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
