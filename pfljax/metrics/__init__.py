"""From per-client sums to the numbers of a table."""

from pfljax.metrics.summary import Summary, best_of, over_rounds, summarize

__all__ = ["Summary", "best_of", "over_rounds", "summarize"]
