"""Metrics of a client's whole outputs, and summaries across clients and rounds."""

from pfljax.metrics.registry import METRICS, Metric, is_percent
from pfljax.metrics.summary import (
    Summary,
    across_rounds,
    best_round,
    over_rounds,
    personalization_bias,
    result_key,
    summarize,
)

__all__ = [
    "METRICS",
    "Metric",
    "Summary",
    "across_rounds",
    "best_round",
    "is_percent",
    "over_rounds",
    "personalization_bias",
    "result_key",
    "summarize",
]
