"""Reviews of products with ratings, by authors who reviewed several; the authors are the clients.

The items are features of the reviews by a frozen encoder, `[num_items, d]`, which come with the
files. A split by item keeps the reviews of a product together. Reviews are in no order of time.
"""

from __future__ import annotations

import numpy as np

from pfljax.data import checks, validate_arrays
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.errors import UserError

_FOLDERS = ("pgraphrag",)
_FILES = ("gap.npz", "features_wordllama_gap.npz")
_PARTS = ("text", "title")
_BEST = 5
# A larger number of an author is damaged.
_MOST_USERS = 10**6
# Features have the norm 1, so that their entries are about 1/16.
_STD_OF_FEATURES = 0.25
_CLASSES = {
    "best": ("fewer stars", "five stars"),
    "rating": tuple(str(stars) for stars in range(1, _BEST + 1)),
}


def load_pgraphrag(data_dir: str = "", *, labels: str = "best", features: str = "text") -> Examples:
    """Returns grammar and product reviews by 5,000 authors, most of whom wrote a single one.

    Args:
      data_dir: A directory with `gap.npz` and `features_wordllama_gap.npz`, or with a directory
        `pgraphrag` of them.
      labels: 'best' for two classes, of which 1 is a review of five stars, or 'rating' for the five
        numbers of stars as classes.
      features: What the encoder read, the 'text' or the 'title' of a review.

    Returns:
      Examples with inputs `[n]` int32, item numbers; the items are `[n, 256]` float32, one for each
      review, and their groups are the products.

    Raises:
      UserError: The files are missing or damaged, or an option is invalid.

    References:
      Au, Dimacali, Pedirappagari, Park, Dernoncourt, Wang, Kanakaris, Deilamsalehy, Rossi, Ahmed,
      "Personalized Graph-Based Retrieval for Large Language Models", 2025,
      https://arxiv.org/abs/2501.02157.
    """
    checks.choice("data.options.pgraphrag.labels", labels, _CLASSES)
    checks.choice("data.options.pgraphrag.features", features, _PARTS)
    searched = files.directories(data_dir, _FOLDERS)
    paths = files.find(searched, _FILES)
    if paths is None:
        raise files.absent("pgraphrag", searched, f"put {' and '.join(_FILES)} there")
    path, features_path = paths
    users, products, ratings = files.read_npz(path, "user", "product", "rating")
    codes, scale = files.read_npz(features_path, features, f"{features}_scale")
    for array in (codes, scale):
        validate_arrays.finite(features_path, files.numbers(features_path, array, "features"))
    if codes.ndim != 2 or not codes.size or scale.shape != codes.shape[:1]:
        raise UserError(
            f"{features_path} has features of shape {codes.shape} with scales of shape "
            f"{scale.shape} instead of a row and a number for each review: {files.FETCH_AGAIN}."
        )
    size = len(codes)
    if {users.shape, products.shape, ratings.shape} != {(size,)}:
        raise UserError(
            f"{path} has users, products and ratings of shapes {users.shape}, {products.shape} and "
            f"{ratings.shape}, but there are features of {size} reviews: {files.FETCH_AGAIN}."
        )

    def whole(values, what, **bounds):
        return validate_arrays.whole(path, values, what, remedy=files.FETCH_AGAIN, **bounds)

    stars = whole(ratings, "rating", least=1, most=_BEST)
    targets = (stars == _BEST).astype(np.int32) if labels == "best" else stars - 1
    owners = whole(users, "user", least=0, most=_MOST_USERS)
    return Examples(
        name="pgraphrag",
        inputs=np.arange(size, dtype=np.int32),
        targets=targets,
        num_classes=len(_CLASSES[labels]),
        std=_STD_OF_FEATURES,
        owners=owners,
        class_names=_CLASSES[labels],
        items=(codes * scale[:, np.newaxis]).astype(np.float32),
        item_groups=whole(products, "product", least=0),
        owner_names=tuple(f"author {number}" for number in range(owners.max() + 1)),
    )
