"""From per-client sums to the numbers of a table."""

from pfljax.metrics.summary import Summary, over_rounds, summarize

__all__ = ["Summary", "over_rounds", "summarize"]
