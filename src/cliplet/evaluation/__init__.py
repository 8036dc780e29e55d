"""Measuring an Encoder. Knows pictures, sentences and arrays; imports no torch."""

from cliplet.evaluation.intervals import bootstrap_intervals, paired_bootstrap
from cliplet.evaluation.measure import Evaluation, evaluate
from cliplet.evaluation.retrieval import retrieval_metrics, retrieval_ranks

__all__ = [
    "Evaluation",
    "bootstrap_intervals",
    "evaluate",
    "paired_bootstrap",
    "retrieval_metrics",
    "retrieval_ranks",
]
