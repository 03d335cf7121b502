"""Scores of clients: those of the runs, and the rows of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """The scores of a method across clients; NaN where a value is undefined.

    Attributes:
      method: The name of the method.
      mean: The mean over clients; like the next two, computed for each seed and then averaged.
      personalization_bias: The deviation over clients, as `metrics.personalization_bias` has it.
      worst_decile: The mean over the 10 % of clients with the worst scores.
      gain: The mean over clients of the gain over the reference method; positive is better.
      gain_low: The lower end of its 95 % interval, from a paired bootstrap over clients.
      gain_high: The upper end.
      gaining: The fraction of clients with a positive gain.
      size_correlation: Spearman's correlation of the gain with the number of training examples.
      group_gap: The difference between the best and the worst mean score of a group.
    """

    method: str
    mean: float
    personalization_bias: float
    worst_decile: float
    gain: float
    gain_low: float
    gain_high: float
    gaining: float
    size_correlation: float
    group_gap: float


class Comparison(NamedTuple):
    """The scores of clients in several methods.

    Attributes:
      rows: A row for each method, the reference method first.
      metrics: The names of the metrics; the first one is the score of all columns but the bias.
      percent: Whether the score, and whether all metrics, are shown in percent.
      has_groups: Whether the rows have a gap between groups.
      notes: Sentences on the clients, the columns, and what is left out.
    """

    rows: list[Row]
    metrics: Sequence[str]
    percent: tuple[bool, bool]
    has_groups: bool
    notes: list[str]


class Clients(NamedTuple):
    """Clients with a score, stacked over seeds.

    Attributes:
      keys: `[n]`, the names by which clients are recognized across seeds.
      seeds: `[n]`, the index of the seed.
      sizes: `[n]`, the number of training examples.
      values: `{method: [n, metrics]}`.
      known: The names of all clients, those without a score and held-out ones included.
      are_same: Whether clients are recognized across seeds.
      undefined: Number of clients without a score, over all seeds.
    """

    keys: np.ndarray
    seeds: np.ndarray
    sizes: np.ndarray
    values: dict[str, np.ndarray]
    known: set[str]
    are_same: bool
    undefined: int
