"""Amazon reviews of four kinds of products: bags of words, and whether the review is positive."""

from __future__ import annotations

import io

import numpy as np

from pfljax.data import validate_arrays
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.errors import UserError

DOMAINS = ("books", "dvd", "electronics", "kitchen")
_WORDS = 5000


def load_amazon_review(data_dir: str = "") -> Examples:
    """Returns reviews as counts of 5,000 words and pairs of words; the domains are the clients.

    Args:
      data_dir: A directory with `DOMAIN_train.svmlight` and `DOMAIN_test.svmlight` (plain or
        compressed as .gz) for books, dvd, electronics and kitchen, or with a directory
        `amazon-reviews` or `amazon_review` of them.

    Returns:
      Examples with inputs `[n, 5000]` uint8; class 1 is a positive review.

    Raises:
      UserError: The files are missing or damaged.

    References:
      Blitzer, Dredze, Pereira, "Biographies, Bollywood, Boom-boxes and Blenders: Domain Adaptation
      for Sentiment Classification", 2007, https://aclanthology.org/P07-1056.
      Chen, Xu, Weinberger, Sha, "Marginalized Denoising Autoencoders for Domain Adaptation", 2012,
      https://arxiv.org/abs/1206.4683.
    """
    from sklearn import datasets  # slow to import

    searched = files.directories(data_dir, ("amazon-reviews", "amazon_review"))
    names = [f"{domain}_{part}.svmlight" for domain in DOMAINS for part in ("train", "test")]
    paths = files.find(searched, names)
    if paths is None:
        raise files.absent(
            "amazon_review",
            searched,
            f"put {names[0]}, {names[1]} and those of {', '.join(DOMAINS[1:])} there",
        )
    inputs, labels, owners = [], [], []
    for number, path in enumerate(paths):
        content = files.read(path)
        try:
            counts, signs = datasets.load_svmlight_file(
                io.BytesIO(content), n_features=_WORDS, zero_based=True
            )
            if b"_" in content:
                raise ValueError("an underscore")
            if not len(signs):
                raise ValueError("no rows")
            if not np.isin(signs, (-1, 1)).all():
                raise ValueError("labels that are not -1 or 1")
        except Exception as error:  # Damaged files fail in several ways.
            reason = error if isinstance(error, ValueError) else type(error).__name__
            raise UserError(
                f"{path} is damaged or not an svmlight file of {_WORDS} counts and labels of -1 "
                f"and 1 ({reason}): {files.FETCH_AGAIN}."
            ) from error
        counts.data = validate_arrays.pixels(path, counts.data, remedy=files.FETCH_AGAIN)
        inputs.append(counts.astype(np.uint8).toarray())
        labels.append((signs > 0).astype(np.int32))
        owners.append(np.full(len(signs), number // 2, np.int32))
    return Examples(
        name="amazon_review",
        inputs=np.concatenate(inputs),
        targets=np.concatenate(labels),
        num_classes=2,
        owners=np.concatenate(owners),
    )
