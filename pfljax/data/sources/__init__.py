"""Sources: each reads one data set into `Examples`, a pool that is not partitioned yet.

Each loader takes the user's directory; its keyword-only arguments are the options of the data set
(`config.data.options.NAME`). Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable

from pfljax.data.examples import Examples
from pfljax.data.sources.amazon_review import load_amazon_review
from pfljax.data.sources.annotators import load_md_agreement, load_popquorn, load_studemo
from pfljax.data.sources.cifar import load_cifar10, load_cifar100
from pfljax.data.sources.digit_domains import load_digit5, load_svhn
from pfljax.data.sources.digits import load_digits
from pfljax.data.sources.femnist import load_femnist
from pfljax.data.sources.har import load_har
from pfljax.data.sources.idx import IDX_FILES, load_emnist, load_fashion_mnist, load_mnist, read_idx
from pfljax.data.sources.image_lists import (
    load_camelyon17,
    load_covidx,
    load_flowers102,
    load_gtsrb,
    load_iwildcam,
    load_stanford_cars,
)
from pfljax.data.sources.image_trees import (
    load_country211,
    load_domainnet,
    load_image_classes,
    load_image_domains,
    load_kvasir,
    load_tiny_imagenet,
)
from pfljax.data.sources.lamp import load_lamp
from pfljax.data.sources.long_tail import (
    beyond_long_tail,
    load_cifar10_lt,
    load_cifar100_lt,
    long_tail,
)
from pfljax.data.sources.matlab import load_landmine, load_office_caltech, load_school
from pfljax.data.sources.movielens import load_movielens
from pfljax.data.sources.news import load_ag_news, load_sogou_news
from pfljax.data.sources.omniglot import load_omniglot
from pfljax.data.sources.pamap2 import load_pamap2
from pfljax.data.sources.peft_u import load_peft_u
from pfljax.data.sources.preferences import load_persona_feedback, load_prism_pairs
from pfljax.data.sources.reviews import load_pgraphrag
from pfljax.data.sources.shakespeare import load_shakespeare
from pfljax.data.sources.simulated_preferences import load_simulated_preferences
from pfljax.data.sources.synthetic import load_synthetic
from pfljax.data.sources.tables import load_parkinsons, load_wisdm

__all__ = [
    "IDX_FILES",
    "SOURCES",
    "Examples",
    "beyond_long_tail",
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
    "svhn": load_svhn,
    "digit5": load_digit5,
    "omniglot": load_omniglot,
    "tiny_imagenet": load_tiny_imagenet,
    "country211": load_country211,
    "flowers102": load_flowers102,
    "stanford_cars": load_stanford_cars,
    "gtsrb": load_gtsrb,
    "covidx": load_covidx,
    "kvasir": load_kvasir,
    "domainnet": load_domainnet,
    "camelyon17": load_camelyon17,
    "iwildcam": load_iwildcam,
    "image_classes": load_image_classes,
    "image_domains": load_image_domains,
    "shakespeare": load_shakespeare,
    "ag_news": load_ag_news,
    "sogou_news": load_sogou_news,
    "amazon_review": load_amazon_review,
    "office_caltech": load_office_caltech,
    "har": load_har,
    "pamap2": load_pamap2,
    "wisdm": load_wisdm,
    "parkinsons": load_parkinsons,
    "school": load_school,
    "landmine": load_landmine,
    "movielens": load_movielens,
    "md_agreement": load_md_agreement,
    "popquorn": load_popquorn,
    "studemo": load_studemo,
    "pgraphrag": load_pgraphrag,
    "lamp": load_lamp,
    "peft_u": load_peft_u,
    "prism_pairs": load_prism_pairs,
    "persona_feedback": load_persona_feedback,
    "simulated_preferences": load_simulated_preferences,
    "synthetic": load_synthetic,
}
