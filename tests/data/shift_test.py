"""Shifts by groups: what changes, what stays, and for whom."""

import numpy as np
import pytest

from pfljax import data
from pfljax.data import shift
from pfljax.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return data.load(name="digits", partition="iid", num_clients=10, unseen_fraction=0.2)


def rows_of(dataset, client):
    end = dataset.test.offsets[client] + dataset.test.sizes[client]
    return slice(dataset.train.offsets[client], end)


def features(dataset, kind, num_groups=4, strength=0.5, seed=0):
    return shift.shift_features(dataset, kind, num_groups=num_groups, strength=strength, seed=seed)


def concept(dataset, num_groups=4, seed=0):
    return shift.shift_concept(dataset, "permutation", num_groups=num_groups, seed=seed)


def assert_same_but(field, shifted, original):
    for name in original._fields:
        if name != field:
            np.testing.assert_equal(getattr(shifted, name), getattr(original, name))


def test_none_changes_and_copies_nothing(digits):
    assert features(digits, "none", num_groups=0) is digits
    assert shift.shift_concept(digits, "none", num_groups=0, seed=0) is digits


@pytest.mark.parametrize("kind", ["rotation", "contrast", "noise"])
def test_features_change_by_group_and_nothing_else_does(digits, kind):
    before = digits.inputs.copy()
    shifted = features(digits, kind)
    np.testing.assert_array_equal(digits.inputs, before)
    assert shifted.inputs.dtype == np.uint8 and shifted.inputs.shape == before.shape
    assert shifted.inputs.min() >= before.min() and shifted.inputs.max() <= before.max()
    assert_same_but("inputs", shifted, digits)
    for client in range(digits.num_clients):
        rows = rows_of(digits, client)
        same = np.array_equal(shifted.inputs[rows], before[rows])
        assert same == (client % 4 == 0)
    np.testing.assert_array_equal(features(digits, kind).inputs, shifted.inputs)


def test_quarter_turns_are_exact(digits):
    shifted = features(digits, "rotation")
    for client in range(digits.num_clients):
        rows = rows_of(digits, client)
        turned = np.rot90(digits.inputs[rows], client % 4, axes=(1, 2))
        np.testing.assert_array_equal(shifted.inputs[rows], turned)


def test_other_turns_go_the_same_way(digits):
    eighths, quarters = features(digits, "rotation", 8), features(digits, "rotation", 4)
    rows = rows_of(digits, 1)
    twice = shift.rotate(eighths.inputs[rows].astype(float), 1 / 8)
    apart = np.abs(twice - quarters.inputs[rows]).mean()
    assert apart < np.abs(twice - digits.inputs[rows]).mean() / 2


def test_images_that_are_not_square_keep_their_shape(digits):
    wide = digits._replace(inputs=np.tile(digits.inputs, (1, 1, 2, 1)))
    assert features(wide, "rotation").inputs.shape == wide.inputs.shape


def test_contrast_keeps_the_mean_and_shrinks_the_rest(digits):
    exact = digits._replace(inputs=digits.inputs.astype(np.float32))
    shifted = features(exact, "contrast", num_groups=3, strength=0.8)
    for client, factor in ((0, 1.0), (1, 0.6), (2, 0.2)):
        old, new = (each.inputs[rows_of(exact, client)] for each in (exact, shifted))
        np.testing.assert_allclose(new.mean((1, 2, 3)), old.mean((1, 2, 3)), rtol=1e-5)
        np.testing.assert_allclose(new.std((1, 2, 3)), factor * old.std((1, 2, 3)), rtol=1e-5)
    assert shifted.inputs.dtype == np.float32


def test_noise_has_the_strength_asked_for():
    rows, split = np.full((400, 50), 0.5, np.float32), data.Split
    rows[:2, 0] = -100, 100  # a range that clips nothing
    parts = [split(np.int32([0, 200]) + start, np.int32([size] * 2)) for start, size in
             ((0, 150), (150, 20), (170, 30))]  # fmt: skip
    flat = data.FederatedDataset("flat", rows, np.zeros(400, np.int32), *parts, 1, std=2.0)
    noise = features(flat, "noise", num_groups=2, strength=0.3).inputs - rows
    assert np.all(noise[:200] == 0)
    assert noise[200:].std() == pytest.approx(0.6, rel=0.03)
    assert not np.array_equal(features(flat, "noise", 2, 0.3, seed=1).inputs - rows, noise)


def test_labels_are_permuted_by_group(digits):
    shifted = concept(digits)
    assert shifted.targets.dtype == np.int32
    assert_same_but("targets", shifted, digits)
    names = np.full((4, 10), -1)
    for client in range(digits.num_clients):
        rows = rows_of(digits, client)
        for old, new in zip(digits.targets[rows], shifted.targets[rows], strict=True):
            assert names[client % 4, old] in (-1, new)
            names[client % 4, old] = new
    np.testing.assert_array_equal(names[0], np.arange(10))
    for first in range(4):
        assert sorted(names[first]) == list(range(10))
        for second in range(first):
            assert not np.any(names[first] == names[second])
    assert not np.array_equal(concept(digits, seed=1).targets, shifted.targets)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d: features(d, "rotatoin"), "did you mean 'rotation'"),
        (lambda d: features(d, "noise", num_groups=1), "use num_groups=2"),
        (lambda d: features(d, "noise", num_groups=0), "num_groups must be"),
        (lambda d: features(d, "noise", strength=1.5), "shift_strength must be from 0 to 1"),
        (lambda d: concept(d, num_groups=1), "use num_groups=2"),
        (lambda d: concept(d, num_groups=11), "at most 10 groups"),
        (
            lambda d: features(d._replace(inputs=d.inputs.astype(np.int32)), "noise"),
            "needs pixels or floats",
        ),
        (
            lambda d: features(d._replace(inputs=d.inputs.reshape(-1, 64)), "rotation"),
            "needs images",
        ),
        (
            lambda d: concept(d._replace(targets=d.targets.astype(np.float32), task="regression")),
            "not labels",
        ),
    ],
)
def test_invalid_values_are_refused(digits, call, message):
    with pytest.raises(UserError, match=message):
        call(digits)


def test_shifts_go_with_any_partition_through_load():
    plain = data.load(name="digits", partition="iid", num_clients=4)
    shifted = data.load(
        name="digits", partition="iid", num_clients=4, num_groups=2,
        feature_shift="rotation", concept_shift="permutation",
    )  # fmt: skip
    np.testing.assert_array_equal(shifted.inputs, features(plain, "rotation", 2).inputs)
    np.testing.assert_array_equal(shifted.targets, concept(plain, 2).targets)
