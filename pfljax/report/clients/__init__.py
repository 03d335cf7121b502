"""Scores of clients across methods: spread, gain over a reference method, gaps between groups.

A client that takes part with several seeds counts once, with the mean of its scores over them. A
client is recognized by its name; without names by its number, if all seeds share one partition.
"""

from pfljax.report.clients.compare import compare
from pfljax.report.clients.groups import SMALLEST_GROUP, read_groups, recorded_groups
from pfljax.report.clients.runs import read
from pfljax.report.clients.text import markdown
from pfljax.report.clients.types import Comparison, Row

__all__ = [
    "SMALLEST_GROUP",
    "Comparison",
    "Row",
    "compare",
    "markdown",
    "read",
    "read_groups",
    "recorded_groups",
]
