"""Sources: each reads one data set into `Examples`, a pool that belongs to no client yet.

Each loader takes the directory the user gave; its keyword-only arguments are the data set's own
options (`config.data.options.NAME`). Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable

from pfljax.data.examples import Examples
from pfljax.data.sources.digits import load_digits
from pfljax.data.sources.idx import IDX_FILES, load_emnist, load_fashion_mnist, load_mnist, read_idx

__all__ = [
    "IDX_FILES",
    "SOURCES",
    "Examples",
    "load_digits",
    "load_emnist",
    "load_fashion_mnist",
    "load_mnist",
    "read_idx",
]

SOURCES: dict[str, Callable[..., Examples]] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
    "emnist": load_emnist,
}
