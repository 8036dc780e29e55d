"""`benchmarks/search.py vectors`: the nearest of many vectors, by cliplet, FAISS's flat index and FAISS's HNSW.

Rows are real pictures' features, each perturbed: a feature chosen at random, turned by an angle of cosine 0.8 to 0.9
towards noise that has the covariance of all the features. Queries are features of real sentences, and pictures that are
perturbed in the same way and are no rows. Settings are chosen on other queries than those that are reported. What looks
at all rows gets a tenth of the queries.

FAISS's HNSW has 32 links (M), builds with its own default expansion (40), and looks as far as it has to for the recall
that cliplet's index reaches on the queries that both are tuned on. Each system is built in a process of its own, and
searched in others, in rounds, by turns. FAISS's flat index uses all cores for a query, the others one.

Q queries, N rows, D dims, B rows of a block, K results.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from search_data import IN_BLOCK, K, blocks, kth_best, made, mapped, recall_of

AIM_MS, AIM_RECALL = 5.0, 0.98
ROUNDS = 3
LINKS = 32


class Given(NamedTuple):
    """What a system is built from. It puts its files into `folder`."""

    matrix: Path
    folder: Path
    tuning_QD: np.ndarray
    least_Q: np.ndarray  # of each of these queries, the exact score of the K-th best
    threads: int
    recall: float = 0.0  # to be reached


def measure(images: Path, texts: Path, folder: Path, rows: int, seed: int, reuse: bool) -> bool:
    """Builds, searches and prints; returns whether the aims are met. reuse: what an earlier run built is not built
    again."""
    from cliplet.runtime.cores import cores

    packages = ", ".join(f"{one} {version(one)}" for one in ("numpy", "usearch", "numkong", "faiss-cpu"))
    print(f"{cores()} cores, Python {sys.version.split()[0]}, {packages}")
    folder.mkdir(parents=True, exist_ok=True)
    matrix, queries = made(np.load(images), np.load(texts), folder, rows, seed)
    dims = queries["texts"].shape[1]
    counted = ", ".join(f"{len(queries_QD):,} {name}" for name, queries_QD in queries.items())
    print(f"{rows:,} rows of {dims} dims ({matrix.stat().st_size / 1e6:.0f} MB in half precision); queries: {counted}")
    least = {name: alone(kth_best, matrix, queries_QD) for name, queries_QD in queries.items()}
    folder = matrix.with_suffix("")
    folder.mkdir(exist_ok=True)
    given = Given(matrix, folder, queries["tuning"], least["tuning"], cores())
    known = folder / "built.json"
    built: dict[str, dict[str, Any]] = json.loads(known.read_text()) if reuse and known.exists() else {}
    for name, (build, _, _) in SYSTEMS.items():
        if name not in built:
            recall = built["cliplet"]["tuned_recall"] if built else 0.0
            built[name] = alone(build, given._replace(recall=recall))
            known.write_text(json.dumps(built))
        print(f"    {name}: {json.dumps(built[name])}", file=sys.stderr, flush=True)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in SYSTEMS}
    for _ in range(ROUNDS):
        for name, (_, search, part) in SYSTEMS.items():
            asked = {one: queries[one][::part] for one in ("texts", "pictures")}
            rounds[name].append(alone(searched, search, given, built[name], asked))
            print(f"    {name}: {rounds[name][-1]['median_ms']:.2f} ms", file=sys.stderr, flush=True)
    report = {}
    for name, (_, _, part) in SYSTEMS.items():
        asked, right = ({one: of[one][::part] for one in ("texts", "pictures")} for of in (queries, least))
        report[name] = built[name] | summary(rounds[name], matrix, asked, right)
    shown(report)
    print("\n" + json.dumps(report))
    ours = report["cliplet"]
    return bool(ours["median_ms"] < AIM_MS and ours["recall_texts"] >= AIM_RECALL)


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` gives in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


# -- the systems: built, and opened for searching


def cliplet_build(given: Given) -> dict[str, Any]:
    from cliplet.library.approximate_making import build

    file = given.folder / "cliplet.usearch"
    began = time.perf_counter()
    vectors_ND = mapped(given.matrix, given.tuning_QD.shape[1])
    about = build(vectors_ND, file, given.tuning_QD, progress=told)
    levels = [vars(level) for level in about.levels]
    return built(began, file, about.levels[0].recall_texts if levels else 0.0) | {"levels": levels, "threads": 1}


def told(done: int, of: int) -> None:
    if not done // IN_BLOCK % 8:
        print(f"    {done:,} of {of:,} rows", file=sys.stderr, flush=True)


def cliplet_search(given: Given, _: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    from cliplet.library.nearest import Neighbours

    neighbours = Neighbours(mapped(given.matrix, given.tuning_QD.shape[1]), given.folder / "cliplet.usearch")
    if neighbours.index is None:
        print(f"    no index is used: {neighbours.problem}", file=sys.stderr)
    return lambda query_D: neighbours.search(query_D, K)[0]


def exact_build(given: Given) -> dict[str, Any]:
    return {"build_s": 0.0, "index_mb": 0.0, "build_peak_mb": 0.0, "tuned_recall": 1.0, "threads": 1}


def exact_search(given: Given, _: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    from cliplet.library.exact import exact

    vectors_ND = mapped(given.matrix, given.tuning_QD.shape[1])
    return lambda query_D: exact(vectors_ND, query_D, K)[0]


def flat_build(given: Given) -> dict[str, Any]:
    import faiss

    file = given.folder / "flat.faiss"
    began = time.perf_counter()
    index = faiss.IndexFlatIP(given.tuning_QD.shape[1])
    for block_BD in blocks(given.matrix, given.tuning_QD.shape[1]):
        index.add(block_BD)
    faiss.write_index(index, str(file))
    return built(began, file, 1.0) | {"threads": given.threads}


def flat_search(given: Given, about: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    return faiss_search(given.folder / "flat.faiss", given.threads)


def hnsw_build(given: Given) -> dict[str, Any]:
    import faiss

    faiss.omp_set_num_threads(given.threads)
    file, dims = given.folder / "hnsw.faiss", given.tuning_QD.shape[1]
    began = time.perf_counter()
    index = faiss.IndexHNSWFlat(dims, LINKS, faiss.METRIC_INNER_PRODUCT)
    for block_BD in blocks(given.matrix, dims):
        index.add(block_BD)
    faiss.write_index(index, str(file))
    about = built(began, file, 0.0)
    for step in range(4, 17):
        index.hnsw.efSearch = round(16 * 2 ** (step / 2))
        rows_QK = index.search(given.tuning_QD, K)[1]
        recall = recall_of(given.matrix, rows_QK, given.tuning_QD, given.least_Q)
        if recall >= given.recall:
            break
    return about | {"tuned_recall": recall, "expansion": index.hnsw.efSearch, "threads": 1}


def hnsw_search(given: Given, about: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    return faiss_search(given.folder / "hnsw.faiss", 1, about["expansion"])


def faiss_search(file: Path, threads: int, expansion: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.read_index(str(file))
    if expansion:
        index.hnsw.efSearch = expansion
    return lambda query_D: index.search(query_D[None], K)[1][0]


SYSTEMS: dict[str, tuple[Callable[..., Any], Callable[..., Any], int]] = {  # the third: every how manieth query
    "cliplet": (cliplet_build, cliplet_search, 1),
    "cliplet, exact": (exact_build, exact_search, 10),
    "FAISS flat": (flat_build, flat_search, 10),
    "FAISS HNSW": (hnsw_build, hnsw_search, 1),
}


# -- figures


def built(began: float, file: Path, recall: float) -> dict[str, Any]:
    seconds = time.perf_counter() - began
    size = file.stat().st_size / 1e6
    return {
        "build_s": round(seconds, 1),
        "index_mb": round(size, 1),
        "build_peak_mb": memory()["VmHWM"],
        "tuned_recall": recall,
    }


def memory() -> dict[str, float]:
    """Of this process, in MB: the most it held, and what it holds of its own and of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    wanted = ("VmHWM", "RssAnon", "RssFile")
    return {line.split(":")[0]: round(int(line.split()[1]) / 1e3, 1) for line in lines if line.startswith(wanted)}


def searched(
    search: Callable[..., Any], given: Given, about: dict[str, Any], asked: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Every query once without a clock, so that what is mapped is in memory, and once with it."""
    began = time.perf_counter()
    ask = search(given, about)
    opening = time.perf_counter() - began
    rows, times = {}, []
    for name, queries_QD in asked.items():
        rows[name] = np.stack([padded(ask(query_D)) for query_D in queries_QD])
    for query_D in asked["texts"]:
        began = time.perf_counter()
        ask(query_D)
        times.append(1000 * (time.perf_counter() - began))
    return {"open_s": opening, "times": times, "median_ms": statistics.median(times), "rows": rows, **memory()}


def padded(rows_K: np.ndarray) -> np.ndarray:
    return np.pad(rows_K, (0, K - len(rows_K)), constant_values=-1)


def summary(
    rounds: list[dict[str, Any]], matrix: Path, asked: dict[str, np.ndarray], least: dict[str, np.ndarray]
) -> dict[str, Any]:
    times = [one for found in rounds for one in found["times"]]
    last = rounds[-1]
    recalls = {f"recall_{name}": recall_of(matrix, last["rows"][name], asked[name], least[name]) for name in asked}
    return {
        "median_ms": round(statistics.median(times), 3),
        "p95_ms": round(float(np.quantile(times, 0.95)), 3),
        "medians_ms": [round(found["median_ms"], 3) for found in rounds],
        "open_s": round(statistics.median(found["open_s"] for found in rounds), 3),
        "own_mb": last["RssAnon"],
        "mapped_mb": last["RssFile"],
        "peak_mb": last["VmHWM"],
        **{name: round(value, 4) for name, value in recalls.items()},
    }


def shown(report: dict[str, dict[str, Any]]) -> None:
    columns = {
        "build_s": "build s", "index_mb": "index MB", "build_peak_mb": "build MB", "own_mb": "own MB",
        "mapped_mb": "mapped MB", "open_s": "open s", "threads": "threads",
        "median_ms": "median ms", "p95_ms": "p95 ms", "recall_texts": "recall texts", "recall_pictures": "pictures",
    }  # fmt: skip
    print("\n" + " " * 16 + "".join(f"{title:>13}" for title in columns.values()))
    for name, figures in report.items():
        print(f"{name:<16}" + "".join(f"{figures[column]:>13,}" for column in columns))
