"""Partitions and shifts of the real files in PFLJAX_DATA."""

import os
from pathlib import Path

import numpy as np
import pytest

from pfljax import data
from pfljax.errors import UserError


def load(name, folder, **settings):
    root = os.environ.get("PFLJAX_DATA", "")
    if not root or not (Path(root) / folder).is_dir():
        pytest.skip(f"PFLJAX_DATA names no folder that holds {folder}")
    return data.load(name=name, dir=root, **settings)


@pytest.mark.parametrize("classes", [10, 100])
def test_five_hundred_clients_of_cifar(classes):
    loaded = load(f"cifar{classes}", f"cifar{classes}-subset", num_clients=500, alpha=0.1)
    assert loaded.num_clients == 500
    sizes = loaded.train.sizes + loaded.validation.sizes + loaded.test.sizes
    assert sizes.sum() == len(loaded.targets) == 12_000 and sizes.min() >= 10


def test_groups_by_superclass():
    loaded = load(
        "cifar100", "cifar100-subset",
        partition="groups", group_by="superclass", num_groups=20, num_clients=40,
    )  # fmt: skip
    held = loaded.class_counts() > 0
    # Each superclass has five classes, and here a group for itself.
    assert np.all(held.sum(axis=1) == 5)
    np.testing.assert_array_equal(held[:20], held[20:])


def test_noise_on_standardized_measurements():
    settings = dict(partition="natural", num_groups=2)
    plain = load("har", "uci-har", **settings)
    noisy = data.load(name="har", dir=os.environ["PFLJAX_DATA"], feature_shift="noise", **settings)
    assert noisy.inputs.dtype == plain.inputs.dtype
    start, size = plain.train.offsets[1], plain.train.sizes[1]
    added = (noisy.inputs - plain.inputs)[start : start + size].astype(float) / plain.std
    assert added.std(axis=(0, 1)) == pytest.approx(0.5, rel=0.05)


def test_words_have_no_contrast():
    with pytest.raises(UserError, match="feature_shift=contrast needs pixels or floats"):
        load("shakespeare", "shakespeare", partition="natural", feature_shift="contrast")
