"""Difference features: a user's deviation from other users, without its own labels of the item."""

import annotations
import numpy as np
import pytest

from pfljax import data
from pfljax.data import FederatedDataset, Split, difference_features
from pfljax.errors import UserError

ITEMS = np.array([[1, 0], [0, 2], [1, 1], [3, 0]], np.float32)
# Ann rates the items 0, 1, 2 in training and 3 in a test; ben 0 and 1 in training, 2 in validation
# and 3 in a test; cat the item 0 in training and 1 in a test.
USERS = {
    "ann": ([0, 1, 2], [], [3]),
    "ben": ([0, 1], [2], [3]),
    "cat": ([0], [], [1]),
}
LABELS = {
    "ann": ([1, 0, 1], [], [1]),
    "ben": ([0, 1], [1], [0]),
    "cat": ([0], [], [0]),
}


def rows_of(of_users):
    return np.concatenate([np.array(part, np.int32) for parts in of_users for part in parts])


def ratings(num_unseen=0, labels=None, **changed):
    """The data set of the ratings above, in the order train, validation, test of each user."""
    sizes = np.array([[len(part) for part in parts] for parts in USERS.values()], np.int32)
    ends = np.cumsum(sizes, dtype=np.int32).reshape(sizes.shape)
    splits = [Split(*each) for each in zip((ends - sizes).T, sizes.T, strict=True)]
    dataset = FederatedDataset(
        "ratings",
        rows_of(USERS.values()),
        rows_of(LABELS.values()) if labels is None else labels,
        *splits,
        num_classes=2,
        num_unseen=num_unseen,
        items=ITEMS,
    )
    return dataset._replace(**changed)


def test_three_users_by_hand():
    found = difference_features(ratings(), shrinkage=1.0)
    assert found.items is None and found.inputs.dtype == np.float32
    np.testing.assert_array_equal(found.inputs[:, :2], ITEMS[ratings().inputs])
    # Deviations in training: ann has 1 - (0 + 0) / 2 = 1 on the item 0, 0 - 1 = -1 on the item 1,
    # and 0 on the item 2, which no other user rates in training; ben has 0 - (1 + 0) / 2 = -1/2
    # and 1 - 0 = 1; cat 0 - (1 + 0) / 2 = -1/2.
    mean = [
        *((-1 + 0) / 3, (1 + 0) / 3, (1 - 1) / 3, (1 - 1 + 0) / 4),  # ann: 0, 1, 2, test 3
        *(1 / 2, -1 / 4, (-1 / 2 + 1) / 3, (-1 / 2 + 1) / 3),  # ben: 0, 1, validation 2, test 3
        *(0, -1 / 4),  # cat: 0, test 1
    ]
    np.testing.assert_allclose(found.inputs[:, 2], mean, atol=1e-7)
    # Products of the items: <x0, x1> = 0, <x0, x2> = 1, <x0, x3> = 3, <x1, x2> = 2, <x1, x3> = 0.
    linear = [
        *(0, 0, (1 - 2) / 3, 3 / 4),
        *(0, 0, (-1 / 2 + 2) / 3, (-3 / 2) / 3),
        *(0, 0),
    ]
    np.testing.assert_allclose(found.inputs[:, 3], linear, atol=1e-7)


def test_held_out_users_are_compared_with_participants_only():
    whole, held_out = (difference_features(ratings(n), shrinkage=0.0) for n in (0, 1))
    # Without cat, ann deviates by 1 - 0 on the item 0, and ben by 0 - 1, not by -1/2.
    assert whole.inputs[7, 2] == (-1 / 2 + 1) / 2 and held_out.inputs[7, 2] == (-1 + 1) / 2
    assert held_out.inputs[9, 2] == -1 / 2  # cat, the mean of ann and ben on the item 0


def test_no_feature_has_its_own_label_or_one_that_is_not_in_training():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 10).astype(np.int32)
    before = difference_features(ratings(labels=labels)).inputs
    dataset = ratings()
    trained = np.concatenate(
        [np.arange(o, o + n) for o, n in zip(*dataset.train, strict=True)]
    ).tolist()
    for row in range(10):
        changed = labels.copy()
        changed[row] = 1 - changed[row]
        after = difference_features(ratings(labels=changed)).inputs
        np.testing.assert_array_equal(after[row], before[row])
        same = [np.array_equal(one, other) for one, other in zip(after, before, strict=True)]
        # The item 2 has one training example, without others to compare it with.
        assert all(same) == (row not in trained or dataset.inputs[row] == 2)


def test_a_second_rating_of_an_item_is_left_out_too():
    # Ann's second training example is of the item 0 too, whose other users are ben and cat.
    items = ratings().inputs.copy()
    items[1] = 0
    labels = ratings().targets.copy()
    before = difference_features(ratings(inputs=items)).inputs[0]
    labels[1] = 1 - labels[1]
    np.testing.assert_array_equal(
        difference_features(ratings(inputs=items, labels=labels)).inputs[0], before
    )


def test_users_without_others_have_zeros():
    apart = np.arange(10, dtype=np.int32)
    items = np.ones((10, 2), np.float32)
    for shrinkage in (0.0, 3.0):
        found = difference_features(ratings(inputs=apart, items=items), shrinkage)
        np.testing.assert_array_equal(found.inputs[:, 2:], 0)


def test_more_classes_and_numbers():
    labels = 2 * ratings().targets
    three = difference_features(ratings(labels=labels, num_classes=3), 1.0).inputs
    two = difference_features(ratings(), 1.0).inputs
    assert three.shape == (10, 6)  # the mean deviation of two classes, then the linear function
    np.testing.assert_array_equal(three[:, [2, 4]], 0)
    np.testing.assert_allclose(three[:, [3, 5]], two[:, 2:])
    numbers = ratings(
        labels=3 + 2 * ratings().targets.astype(np.float32),
        num_classes=0,
        task="regression",
        target_mean=3.0,
        target_std=2.0,
    )
    np.testing.assert_allclose(difference_features(numbers, 1.0).inputs, two)


def test_items_are_standardized_as_models_read_them():
    found = difference_features(ratings(mean=1.0, std=0.5), 1.0)
    like = difference_features(ratings(items=(ITEMS - 1) / 0.5), 1.0)
    np.testing.assert_allclose(found.inputs, like.inputs)
    assert (found.mean, found.std) == (0.0, 1.0)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"items": None}, "ratings has no items .* data.user_features=none"),
        ({"vocabulary": (9,)}, "items of ratings are ids"),
        ({"task": "ranking"}, "ratings is a ranking"),
        (
            {"server": data.ServerExamples(np.zeros(1, np.int32), np.zeros(1, np.int32))},
            "server's examples of ratings have no user",
        ),
    ],
)
def test_what_has_no_difference_features(changed, message):
    with pytest.raises(UserError, match=message):
        difference_features(ratings(**changed))


def test_shrinkage_is_checked():
    with pytest.raises(UserError, match="shrinkage must be from 0"):
        difference_features(ratings(), -1.0)


def load(directory, **changed):
    settings = {"partition": "natural", "min_size": 2, "split": "by_item", "dir": str(directory)}
    return data.load("popquorn", **settings | {"user_features": "difference"} | changed)


def test_loaded_by_name(tmp_path):
    annotations.write(tmp_path, "popquorn")
    found = load(tmp_path, shrinkage=2.0)
    plain = load(tmp_path, user_features="none")
    np.testing.assert_array_equal(found.inputs, difference_features(plain, 2.0).inputs)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"user_features": "deviation"}, "data.user_features 'deviation'"),
        ({"shrinkage": -1.0}, "data.shrinkage must be from 0"),
        ({"standardize": "client"}, "same items, and data.standardize=client changes"),
        (
            {"concept_shift": "permutation"},
            "data.concept_shift=permutation changes .* one or the other",
        ),
        ({"server_fraction": 0.2}, "examples of popquorn have no user"),
    ],
)
def test_settings_that_contradict_it(tmp_path, changed, message):
    annotations.write(tmp_path, "popquorn")
    with pytest.raises(UserError, match=message):
        load(tmp_path, **changed)
