"""Measuring an Encoder. Knows pictures, sentences and arrays; imports no torch."""

from cliplet.evaluation.measure import Evaluation, evaluate
from cliplet.evaluation.retrieval import retrieval_metrics

__all__ = ["Evaluation", "evaluate", "retrieval_metrics"]
