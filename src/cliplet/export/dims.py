"""Fewer dimensions of features. N pictures, M captions, D embed_dim, K fewer."""

from __future__ import annotations

import numpy as np


def projection(image_ND: np.ndarray, text_MD: np.ndarray, size: int) -> np.ndarray:
    """Directions (D, K) in which pictures and captions differ the most among themselves, the best first.

    Principal components of both sides' features about their own means: pictures and captions of a dual encoder lie
    apart (the modality gap, Liang et al. 2022, arXiv:2203.02053), and the direction between them tells no picture from
    another. Any first columns are the best projection to so few, so one matrix serves all sizes.
    """
    covariance_DD = sum(np.cov(rows.T.astype(np.float64), bias=True) for rows in (image_ND, text_MD))
    _, vectors_DD = np.linalg.eigh(covariance_DD)
    return np.ascontiguousarray(vectors_DD[:, ::-1][:, :size], dtype=np.float32)


def reduced(rows: np.ndarray, projection_DK: np.ndarray, size: int) -> np.ndarray:
    """Features (rows, size) of unit length, as the graphs compute them."""
    cut = (rows @ projection_DK)[:, :size]
    return cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)
