"""Reviews of products: the files, the labels, and a split that keeps products together."""

import histories
import numpy as np
import pytest

from pfljax import data
from pfljax.errors import UserError


def test_reviews(tmp_path):
    reviews, encoded = histories.write_reviews(tmp_path)
    pool = data.SOURCES["pgraphrag"](str(tmp_path))
    np.testing.assert_array_equal(pool.targets, reviews["rating"] == 5)
    np.testing.assert_array_equal(pool.owners, reviews["user"])
    np.testing.assert_array_equal(pool.item_groups, reviews["product"])
    np.testing.assert_allclose(pool.items[pool.inputs], 0.01 * encoded["text"], rtol=1e-6)
    pool = data.SOURCES["pgraphrag"](str(tmp_path), labels="rating", features="title")
    np.testing.assert_array_equal(pool.targets, reviews["rating"] - 1)
    assert pool.num_classes == 5 and len(pool.owner_names) == histories.NUM_AUTHORS
    np.testing.assert_allclose(pool.items, 0.01 * encoded["title"], rtol=1e-6)


def test_a_split_by_item_keeps_the_reviews_of_a_product_together(tmp_path):
    reviews, encoded = histories.write_reviews(tmp_path)
    dataset = data.load(
        "pgraphrag",
        dir=str(tmp_path),
        partition="natural",
        split="by_item",
        test_fraction=0.3,
        validation_fraction=0.2,
    )
    products = {}
    for part in ("train", "validation", "test"):
        ends = zip(*getattr(dataset, part), strict=True)
        rows = np.concatenate([np.arange(start, start + size) for start, size in ends])
        products[part] = set(reviews["product"][dataset.inputs[rows]].tolist())
    assert len(products["test"]) == 2 and len(products["validation"]) == 1
    assert (
        sum(map(len, products.values()))
        == histories.NUM_PRODUCTS
        == len(set().union(*products.values()))
    )


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"rating": None}, "lacks rating"),
        ({"title": None}, ""),
        ({"rating": np.full(60, 6)}, "the rating 6"),
        ({"rating": np.full(60, 0)}, "the rating 0"),
        ({"user": np.full(60, -1)}, "the user -1"),
        ({"product": np.zeros(59)}, "60 reviews"),
        ({"text": np.ones((60, 2)) * np.nan}, "nan"),
        ({"text_scale": np.ones(59)}, "a row and a number for each review"),
    ],
)
def test_files_that_are_wrong(tmp_path, changed, message):
    histories.write_reviews(tmp_path, **changed)
    load = data.SOURCES["pgraphrag"]
    if not message:  # an array that is not read
        assert len(load(str(tmp_path)).targets) == 60
        return
    with pytest.raises(UserError, match=message):
        load(str(tmp_path))


def test_options_and_missing_files(tmp_path):
    load = data.SOURCES["pgraphrag"]
    with pytest.raises(UserError, match="put gap.npz and features_wordllama_gap.npz there"):
        load(str(tmp_path))
    histories.write_reviews(tmp_path)
    for options in ({"labels": "bset"}, {"features": "words"}):
        with pytest.raises(UserError, match=f"data.options.pgraphrag.{[*options][0]}"):
            load(str(tmp_path), **options)
