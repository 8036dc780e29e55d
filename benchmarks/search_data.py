"""The vectors of `benchmarks/search.py vectors`. Q queries, N rows, M sentences, D dims, B rows of a block, K best."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

K = 10
TUNED_ON, MEASURED, PICTURES = 400, 1000, 300  # queries
TIE = 1e-6  # scores that are closer are equal, as matrix products round
IN_BLOCK = 8192


def made(
    images_ND: np.ndarray, texts_MD: np.ndarray, folder: Path, rows: int, seed: int
) -> tuple[Path, dict[str, np.ndarray]]:
    """The file of a matrix of so many rows, made once, and the queries."""
    random = np.random.default_rng(seed)
    images_ND, texts_MD = unit(images_ND.astype(np.float32)), unit(texts_MD.astype(np.float32))
    chosen_MD = texts_MD[random.permutation(len(texts_MD))[: TUNED_ON + MEASURED]]
    turn = Turned(images_ND)
    queries = {"tuning": chosen_MD[:TUNED_ON], "texts": chosen_MD[TUNED_ON:], "pictures": turn(PICTURES, random)}
    known = zlib.crc32(np.ascontiguousarray(images_ND).tobytes())  # so that other features make another matrix
    file = folder / f"rows-{rows}-{seed}-{known:08x}.f16"
    if not file.exists():
        beside = file.with_suffix(".part")
        with beside.open("wb") as stream:
            for start in range(0, rows, IN_BLOCK):
                stream.write(turn(min(IN_BLOCK, rows - start), random).astype(np.float16).tobytes())
        beside.replace(file)
    return file, queries


class Turned:
    """Makes features that are like real ones."""

    def __init__(self, images_ND: np.ndarray):
        self.images_ND = images_ND
        centred_ND = images_ND - images_ND.mean(axis=0)
        values_D, vectors_DD = np.linalg.eigh(np.cov(centred_ND, rowvar=False))
        self.root_DD = (np.sqrt(np.maximum(values_D, 0))[:, None] * vectors_DD.T).astype(np.float32)

    def __call__(self, count: int, random: np.random.Generator) -> np.ndarray:
        """(count, D) float32 of unit length."""
        real_BD = self.images_ND[random.integers(0, len(self.images_ND), count)]
        noise_BD = random.standard_normal(real_BD.shape, dtype=np.float32) @ self.root_DD
        noise_BD = unit(noise_BD - (noise_BD * real_BD).sum(axis=1, keepdims=True) * real_BD)
        cosine_B1 = random.uniform(0.8, 0.9, (count, 1)).astype(np.float32)
        return unit(cosine_B1 * real_BD + np.sqrt(1 - cosine_B1**2) * noise_BD)


def unit(rows_BD: np.ndarray) -> np.ndarray:
    return np.asarray(rows_BD / np.linalg.norm(rows_BD, axis=1, keepdims=True))


def mapped(matrix: Path, dims: int) -> np.ndarray:
    return np.memmap(matrix, np.float16, "r").reshape(-1, dims)


def blocks(matrix: Path, dims: int) -> Iterator[np.ndarray]:
    """(B, D) float32."""
    vectors_ND = mapped(matrix, dims)
    for start in range(0, len(vectors_ND), IN_BLOCK):
        yield vectors_ND[start : start + IN_BLOCK].astype(np.float32)


def kth_best(matrix: Path, queries_QD: np.ndarray) -> np.ndarray:
    """(Q,): of each query the exact score of the K-th best row."""
    best_QK = np.full((len(queries_QD), K), -np.inf, np.float32)
    for block_BD in blocks(matrix, queries_QD.shape[1]):
        both = np.concatenate([best_QK, queries_QD @ block_BD.T], axis=1)
        best_QK = np.partition(both, -K, axis=1)[:, -K:]
    return best_QK.min(axis=1)


def recall_of(matrix: Path, rows_QK: np.ndarray, queries_QD: np.ndarray, least_Q: np.ndarray) -> float:
    """What part of the rows that were found is among the K best; -1 is none."""
    found_QKD = mapped(matrix, queries_QD.shape[1])[np.maximum(rows_QK, 0)].astype(np.float32)
    scores_QK = np.einsum("qkd,qd->qk", found_QKD, queries_QD)
    return float(((scores_QK >= least_Q[:, None] - TIE) & (rows_QK >= 0)).mean())
