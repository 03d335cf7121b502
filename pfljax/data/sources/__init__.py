"""Sources: each reads one data set into `Examples`, a pool that belongs to no client yet.

Each loader takes the directory the user gave; its keyword-only arguments are the data set's own
options (`config.data.options.NAME`). Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable

from pfljax.data.examples import Examples
from pfljax.data.sources.amazon_review import load_amazon_review
from pfljax.data.sources.cifar import load_cifar10, load_cifar100
from pfljax.data.sources.digits import load_digits
from pfljax.data.sources.femnist import load_femnist
from pfljax.data.sources.har import load_har
from pfljax.data.sources.idx import IDX_FILES, load_emnist, load_fashion_mnist, load_mnist, read_idx
from pfljax.data.sources.long_tail import load_cifar10_lt, load_cifar100_lt, long_tail
from pfljax.data.sources.matlab import load_landmine, load_office_caltech, load_school
from pfljax.data.sources.movielens import load_movielens
from pfljax.data.sources.news import load_ag_news, load_sogou_news
from pfljax.data.sources.omniglot import load_omniglot
from pfljax.data.sources.shakespeare import load_shakespeare
from pfljax.data.sources.synthetic import load_synthetic
from pfljax.data.sources.tables import load_parkinsons, load_wisdm

__all__ = [
    "IDX_FILES",
    "SOURCES",
    "Examples",
    "load_digits",
    "load_fashion_mnist",
    "load_mnist",
    "long_tail",
    "read_idx",
]

SOURCES: dict[str, Callable[..., Examples]] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
    "emnist": load_emnist,
    "femnist": load_femnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "cifar10_lt": load_cifar10_lt,
    "cifar100_lt": load_cifar100_lt,
    "omniglot": load_omniglot,
    "shakespeare": load_shakespeare,
    "ag_news": load_ag_news,
    "sogou_news": load_sogou_news,
    "amazon_review": load_amazon_review,
    "office_caltech": load_office_caltech,
    "har": load_har,
    "wisdm": load_wisdm,
    "parkinsons": load_parkinsons,
    "school": load_school,
    "landmine": load_landmine,
    "movielens": load_movielens,
    "synthetic": load_synthetic,
}
