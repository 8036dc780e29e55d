"""How fast exact ranks are, and whether they are right: beside CLIP_benchmark on the same arrays in the same run.

    python benchmarks/evaluation.py [metrics] [large] [engines] [--pictures 5000] [--rounds 3]

`metrics`: 5,000 pictures with 25,000 captions in 512 dimensions, once with features like a good model's and once like
an untrained one's, to all metrics: seconds, peak of memory (VmHWM of a process that does nothing else), and the same
recalls by `clip_benchmark.metrics.zeroshot_retrieval`: its own recall_at_k in its own batches, k = 1, 5, 10 both
ways, the matrix of scores included, for that is what it takes to get there. The two take turns, each in a process of
its own.

`large`: 30,000 pictures with 150,000 captions. Only cliplet: CLIP_benchmark's matrices of this size are 18 GB each.

`engines`: numpy, torch and FAISS on the arrays of `metrics`: seconds, and how many of the ranks differ (none may).

Exit status 1 where `metrics` takes 4 s or 600 MB, `large` 2 GB, is not 10 times as fast, or any recall or rank
differs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

CAPTIONS, DIMENSIONS, KS = 5, 512, (1, 5, 10)
SECONDS, MEGABYTES, FASTER = 4.0, 600.0, 10.0  # what is aimed at
LARGE_MEGABYTES = 2000.0  # features of this size are 368
KINDS = {"trained": 7.5, "untrained": 1e6}  # noise of a caption's features about its picture's


def features(pictures: int, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit rows: pictures, captions about them, and whose each caption is."""
    random = np.random.default_rng(0)
    image_ND = random.standard_normal((pictures, DIMENSIONS), dtype=np.float32)
    text_MD = np.repeat(image_ND, CAPTIONS, axis=0)
    text_MD += KINDS[kind] * random.standard_normal(text_MD.shape, dtype=np.float32)
    for rows in (image_ND, text_MD):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return image_ND, text_MD, np.repeat(np.arange(pictures), CAPTIONS)


def by_cliplet(pictures: int, kind: str) -> tuple[float, dict[str, float]]:
    from cliplet.evaluation.retrieval import clip_benchmark_names, retrieval_metrics

    arrays = features(pictures, kind)
    start = time.perf_counter()
    metrics = retrieval_metrics(*arrays, engine="numpy")
    return time.perf_counter() - start, clip_benchmark_names(metrics) if pictures <= 5000 else metrics


def by_clip_benchmark(pictures: int, kind: str) -> tuple[float, dict[str, float]]:
    """The lines of its `evaluate` that follow the embedding, with its functions and its usual batch of 64."""
    import torch
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    image_ND, text_MD, caption_image_M = map(torch.from_numpy, features(pictures, kind))
    start = time.perf_counter()
    scores_MN = text_MD @ image_ND.t()
    positive_MN = torch.zeros_like(scores_MN, dtype=torch.bool)
    positive_MN[torch.arange(len(scores_MN)), caption_image_M] = True
    metrics = {}
    for k in KS:
        for name, scores, positive in (
            ("image_retrieval", scores_MN, positive_MN),
            ("text_retrieval", scores_MN.T, positive_MN.T),
        ):
            recalls = batchify(recall_at_k, scores, positive, 64, "cpu", k=k)
            metrics[f"{name}_recall@{k}"] = (recalls > 0).float().mean().item()
    return time.perf_counter() - start, metrics


def engine(pictures: int, kind: str, name: str) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    from cliplet.evaluation.retrieval import retrieval_ranks

    arrays = features(pictures, kind)
    start = time.perf_counter()
    ranks = retrieval_ranks(*arrays, engine=name)
    return time.perf_counter() - start, ranks


def _told(pipe: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    pipe.send((work(*arguments), peak()))


def alone(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What `work` gives in a process of its own, and that process's peak of memory in MB."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_told, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    result = ours.recv()
    process.join()
    return result


def peak() -> float:
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def metrics(pictures: int, rounds: int) -> bool:
    good = True
    for kind in KINDS:
        seconds: dict[str, list[float]] = {"cliplet": [], "CLIP_benchmark": []}
        memory = {}
        for _ in range(rounds):
            found = {}
            for name, work in (("cliplet", by_cliplet), ("CLIP_benchmark", by_clip_benchmark)):
                (took, found[name]), memory[name] = alone(work, pictures, kind)
                seconds[name].append(took)
        ratios = [theirs / ours for ours, theirs in zip(seconds["cliplet"], seconds["CLIP_benchmark"], strict=True)]
        largest = max(abs(found["cliplet"][name] - value) for name, value in found["CLIP_benchmark"].items())
        ours, theirs = statistics.median(seconds["cliplet"]), statistics.median(seconds["CLIP_benchmark"])
        print(
            f"\n{pictures:,} pictures, {CAPTIONS * pictures:,} captions, features like those of a model that is {kind}"
        )
        print(f"  cliplet         {ours:8.2f} s {memory['cliplet']:8.0f} MB")
        print(f"  CLIP_benchmark  {theirs:8.2f} s {memory['CLIP_benchmark']:8.0f} MB")
        print(f"  ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) over {rounds} rounds")
        recalls = ", ".join(f"{name} {value:.4f}" for name, value in found["cliplet"].items())
        print(f"  {recalls}\n  largest difference of a recall: {largest:.1e}")
        good &= ours < SECONDS and memory["cliplet"] < MEGABYTES and statistics.median(ratios) >= FASTER
        good &= largest < 1e-6  # theirs are means in single precision
    return good


def large() -> bool:
    good = True
    for kind in KINDS:
        (took, found), memory = alone(by_cliplet, 30_000, kind)
        r1 = f"{found['image_to_text_R@1']:.2f} / {found['text_to_image_R@1']:.2f}"
        print(f"\n30,000 pictures, 150,000 captions, {kind}: {took:.1f} s, {memory:,.0f} MB, R@1 {r1}")
        good &= memory < LARGE_MEGABYTES
    return good


def engines(pictures: int) -> bool:
    differences = 0
    for kind in KINDS:
        (_, first), _ = alone(engine, pictures, kind, "numpy")
        for name in ("numpy", "torch", "faiss"):
            (took, ranks), memory = alone(engine, pictures, kind, name)
            others = sum(int((a != b).sum()) for a, b in zip(first, ranks, strict=True))
            print(f"{kind}, {name:<6} {took:6.2f} s {memory:6.0f} MB, ranks that differ: {others}")
            differences += others
    return not differences


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=["metrics", "large", "engines", []], default=[])
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    parts = options.parts or ["metrics", "large", "engines"]
    print(f"{os.cpu_count()} cores, numpy {np.__version__}, Python {sys.version.split()[0]}")
    good = True
    if "metrics" in parts:
        good &= metrics(options.pictures, options.rounds)
    if "large" in parts:
        good &= large()
    if "engines" in parts:
        good &= engines(options.pictures)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
