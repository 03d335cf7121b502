"""The real files in PFLJAX_DATA: their content, and that every partition applies to them."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from pfljax import data
from pfljax.data.sources import shakespeare


class Facts(NamedTuple):
    """What is known of a data set.

    Attributes:
      folder: The subdirectory of the data set.
      inputs: dtype and shape.
      classes: `C`.
      owners: how many natural clients.
      largest: the largest class; None where there are none.
      options: of its loader.
    """

    folder: str
    inputs: tuple[Any, tuple[int, ...]]
    classes: int
    owners: int | None = None
    largest: int | None = None
    options: dict[str, Any] = {}


FACTS = {
    "mnist": Facts("mnist", (np.uint8, (70000, 28, 28, 1)), 10, None, 7877),
    "fashion_mnist": Facts("fashion-mnist", (np.uint8, (70000, 28, 28, 1)), 10, None, 7000),
    "femnist": Facts("femnist-500", (np.uint8, (111234, 28, 28, 1)), 62, 500, 6162),
    "cifar10": Facts("cifar10-subset", (np.uint8, (12000, 32, 32, 3)), 10, None, 1200),
    "cifar100": Facts("cifar100-subset", (np.uint8, (12000, 32, 32, 3)), 100, 20, 120),
    "cifar100 coarse": Facts(
        "cifar100-subset", (np.uint8, (12000, 32, 32, 3)), 20, None, 600, {"labels": "coarse"}
    ),
    "cifar10_lt": Facts(
        "cifar10-subset", (np.uint8, (4900, 32, 32, 3)), 10, None, 1200, {"imbalance": 10.0}
    ),
    "cifar100_lt": Facts("cifar100-subset", (np.uint8, (2568, 32, 32, 3)), 100, 20, 120),
    "omniglot": Facts("omniglot", (np.uint8, (4840, 28, 28, 1)), 8, 20, 940),
    "omniglot characters": Facts(
        "omniglot",
        (np.uint8, (4840, 35, 35, 1)),
        242,
        8,
        20,
        {"owners": "alphabet", "labels": "character", "side": 35},
    ),
    "shakespeare": Facts("shakespeare", (np.int32, (12992, 80)), 66, 299),
    "ag_news": Facts("ag_news", (np.int32, (127600, 200)), 4, None, 31900),
    "amazon_review": Facts("amazon-reviews", (np.uint8, (27677, 5000)), 2, 4, 13882),
    "office_caltech": Facts("office-caltech10", (np.uint8, (2533, 800)), 10, 4, 297),
    "har": Facts("uci-har", (np.float16, (10299, 128, 9)), 6, 30, 1944),
    "har features": Facts(
        "uci-har", (np.float16, (7352, 561)), 6, 21, 1407, {"inputs": "features"}
    ),
    "wisdm": Facts("tabular", (np.float32, (5418, 43)), 6, 36, 2081),
    "parkinsons": Facts("tabular", (np.float32, (5875, 19)), 0, 42),
    "school": Facts("tabular", (np.uint8, (15362, 28)), 0, 139),
    "landmine": Facts("tabular", (np.float32, (14820, 9)), 2, 29, 13916),
    "movielens": Facts("movielens", (np.int32, (100836, 2)), 0, 610),
    "md_agreement": Facts("md_agreement", (np.int32, (53765,)), 2, 819, 35427),
    "pgraphrag": Facts("pgraphrag", (np.int32, (7181,)), 2, 5000, 4285),
    "popquorn": Facts("popquorn_offensiveness", (np.int32, (13036,)), 2, 262, 7516),
    "studemo": Facts("studemo", (np.int32, (7463,)), 2, 25, 4847),
    "prism_pairs": Facts("prism_pairs", (np.float32, (2584, 2, 257)), 0, 258),
    "persona_feedback": Facts("persona_feedback", (np.float32, (3841, 2, 515)), 0, 147),
}


def place(folder: str) -> str:
    root = os.environ.get("PFLJAX_DATA", "")
    if not root or not (Path(root) / folder).is_dir():
        pytest.skip(f"PFLJAX_DATA names no folder that holds {folder}")
    return root


@pytest.mark.parametrize("case", FACTS)
def test_what_is_in_the_files(case):
    facts, name = FACTS[case], case.split()[0]
    root = place(facts.folder)
    pool = data.SOURCES[name](root, **facts.options)
    dtype, shape = facts.inputs
    assert (pool.inputs.dtype, pool.inputs.shape) == (dtype, shape)
    assert pool.num_classes == facts.classes
    assert len(pool.targets) == shape[0]
    if pool.task == "classification":
        assert pool.targets.dtype == np.int32
        counts = np.bincount(pool.targets, minlength=facts.classes)
        assert len(counts) == facts.classes and counts.min() > 0 and counts.max() == facts.largest
    if pool.vocabulary:
        ids = pool.inputs.reshape(len(pool.inputs), -1, len(pool.vocabulary))
        assert ids.min() >= 0 and (ids.max(axis=(0, 1)) < pool.vocabulary).all()
    elif np.ndim(pool.mean):
        scaled = (pool.inputs.astype(np.float64) - pool.mean) / pool.std
        axes = tuple(range(scaled.ndim - 1))
        np.testing.assert_allclose(scaled.mean(axis=axes), 0, atol=1e-5)
        spread = scaled.std(axis=axes)
        np.testing.assert_allclose(spread[spread > 0.5], 1, rtol=1e-5)
    if pool.task == "regression":
        assert pool.targets.dtype == np.float32 and np.isfinite(pool.targets).all()
        scaled = (pool.targets.astype(np.float64) - pool.target_mean) / pool.target_std
        np.testing.assert_allclose([scaled.mean(), scaled.std()], [0, 1], atol=1e-6)
    if facts.owners is not None:
        assert len(np.unique(pool.owners)) == facts.owners
    # The folder itself serves as well as the one above it.
    direct = data.load(
        name=name,
        dir=str(Path(root) / facts.folder),
        options=facts.options,
        partition="iid" if facts.owners is None else "natural",
    )
    assert direct.train.sizes.min() >= 1 and direct.test.sizes.min() >= 1
    assert direct.class_counts().shape == (direct.num_clients, facts.classes)


@pytest.mark.parametrize("name", ["har", "shakespeare", "movielens", "cifar100", "school"])
def test_other_partitions_work_on_pools_that_have_owners(name):
    root = place(FACTS[name].folder)
    loaded = data.load(name=name, dir=root, partition="dirichlet", alpha=0.5, num_clients=10)
    assert loaded.num_clients == 10
    if FACTS[name].classes and name != "shakespeare":
        classes = (loaded.class_counts() > 0).sum(axis=1)
        assert classes.min() < FACTS[name].classes


def test_har_windows_of_two_parts_share_no_measurement():
    loaded = data.load(name="har", dir=place("uci-har"), partition="natural")
    acceleration = loaded.inputs[:, :, 6:]

    def halves(split, client, half):
        rows = slice(split.offsets[client], split.offsets[client] + split.sizes[client])
        return {window.tobytes() for window in acceleration[rows, half]}

    first, second = slice(None, 64), slice(64, None)
    for client in range(loaded.num_clients):
        for one, other in ((loaded.train, loaded.test), (loaded.validation, loaded.test)):
            assert not halves(one, client, second) & halves(other, client, first)
            assert not halves(one, client, first) & halves(other, client, second)
    # At random nearly every window of the test part would share half with one of the others.
    assert halves(loaded.train, 0, second) & halves(loaded.train, 0, first)
    assert (loaded.class_counts() > 0).all()


def test_har_channels_are_not_mixed_with_time():
    """Lying and standing differ in the direction of gravity, which is steady within a window."""
    pool = data.SOURCES["har"](place("uci-har"))
    total, body = pool.inputs[..., 6:].astype(float), pool.inputs[..., :3].astype(float)
    gravity = total - body
    assert gravity.std(axis=1).mean() < 0.05
    strength = np.linalg.norm(gravity.mean(axis=1), axis=-1)
    np.testing.assert_allclose(strength, 1, atol=0.15)
    x_of = [gravity[pool.targets == label, :, 0].mean() for label in (4, 5)]
    assert x_of[0] > 0.9 and x_of[1] < 0.4


def test_shakespeare_reads_on():
    root = place("shakespeare")
    pool = data.SOURCES["shakespeare"](root)
    text = (Path(root) / "shakespeare" / "input.txt").read_text()
    letters = dict(enumerate(sorted(set("".join(shakespeare.speeches_by_role(text).values()))), 1))
    windows = pool.inputs[pool.owners == 0][:2]
    spoken = "".join(letters[number] for number in windows.ravel())
    assert spoken.startswith("Before we proceed any further, hear me speak.\nYou are all resolved")
    np.testing.assert_array_equal(pool.inputs[:, 1:], pool.targets[:, :-1])
    assert (pool.inputs[0, 1:] == pool.targets[0, :-1]).all()


def test_movielens_users_are_tested_on_what_they_rated_last():
    pool = data.SOURCES["movielens"](place("movielens"))
    assert pool.vocabulary == (610, 9724) and (np.diff(pool.owners) >= 0).all()
    assert (pool.targets.min(), pool.targets.max()) == (0.5, 5.0)


def test_movielens_histories_are_of_the_ratings_before():
    load, root = data.SOURCES["movielens"], place("movielens")
    ratings, pool = load(root), load(root, feedback="histories", num_others=1, history=3)
    assert (pool.inputs.shape, pool.num_classes) == ((100836, 5), 59)
    assert pool.vocabulary[:3] == (9725, 11, 572) and len(pool.items) == 1 + 11 * 9724
    examples = pool.items[pool.inputs][..., :2]
    np.testing.assert_array_equal(examples[:, 0, 0], 1 + ratings.inputs[:, 1])
    np.testing.assert_array_equal(pool.targets, ratings.targets)
    same = pool.owners[1:] == pool.owners[:-1]
    np.testing.assert_array_equal(examples[1:, -1, 0], same * (1 + ratings.inputs[:-1, 1]))
    np.testing.assert_array_equal(examples[1:, -1, 1], same * (2 * ratings.targets[:-1]))
    # Both kinds of feedback choose between the same films.
    implicit = load(root, feedback="implicit", num_others=1)
    np.testing.assert_array_equal(examples[:, :2, 0], 1 + implicit.inputs[..., 1])


def test_femnist_is_dark_on_white():
    pool = data.SOURCES["femnist"](place("femnist-500"))
    assert np.median(pool.inputs[:1000]) == 255 and pool.inputs[:1000, 8:20, 8:20].mean() < 240
