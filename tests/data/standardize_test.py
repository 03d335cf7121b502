"""Splits by scikit-learn's generator, and standardization by training examples."""

import numpy as np
import pytest
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from pfljax import data
from pfljax.data.standardize import standardize
from pfljax.errors import UserError

DRAW = np.random.default_rng(0)
SIZES = [9, 14, 30]
CLIENTS = np.repeat([0, 1, 2], SIZES)
INPUTS = DRAW.normal(CLIENTS[:, None], 1 + CLIENTS[:, None], (sum(SIZES), 4)).astype(np.float32)
INPUTS[:, 3] = 7.0  # constant
LABELS = DRAW.integers(0, 2, sum(SIZES))


def made(**options):
    return data.from_arrays(INPUTS, LABELS, CLIENTS, **options)


def rows(split, client):
    return slice(split.offsets[client], split.offsets[client] + split.sizes[client])


@pytest.mark.parametrize("seed", [0, 1100])
def test_the_plain_split_is_that_of_scikit_learn(seed):
    found = made(split="plain", test_fraction=0.15, validation_fraction=0.15 / 0.85, seed=seed)
    for client in range(3):
        own = INPUTS[CLIENTS == client]
        rest, test = train_test_split(own, test_size=0.15, random_state=seed)
        train, validation = train_test_split(rest, test_size=0.15 / 0.85, random_state=seed)
        for split, wanted in (("train", train), ("validation", validation), ("test", test)):
            np.testing.assert_array_equal(found.inputs[rows(getattr(found, split), client)], wanted)


def test_every_client_keeps_an_example_to_train():
    found = data.from_arrays(
        INPUTS[:6], LABELS[:6], [0, 0, 1, 1, 2, 2], split="plain", test_fraction=0.9
    )
    assert found.train.sizes.tolist() == [1, 1, 1] and found.test.sizes.tolist() == [1, 1, 1]


def test_by_each_client():
    plain, found = made(normalize=False), made(standardize="client")
    assert (found.mean, found.std) == (0.0, 1.0)
    for client in range(3):
        scaler = StandardScaler().fit(plain.inputs[rows(plain.train, client)])
        for name in ("train", "validation", "test"):
            own = rows(getattr(plain, name), client)
            wanted = scaler.transform(plain.inputs[own])
            np.testing.assert_allclose(found.inputs[own], wanted, rtol=1e-4, atol=1e-5)


def test_pooled_leaves_out_test_examples_and_unseen_clients():
    found = made(standardize="pooled", unseen_fraction=0.34)
    seen = [rows(found.train, client) for client in range(2)]
    scaler = StandardScaler().fit(np.concatenate([found.inputs[own] for own in seen]))
    np.testing.assert_allclose(found.mean, scaler.mean_, rtol=1e-6)
    np.testing.assert_allclose(found.std, scaler.scale_, rtol=1e-6)


def test_dicts_of_inputs_keep_their_ids():
    parts = {"user": CLIENTS.astype(np.int32), "rating": INPUTS[:, 0], "text": INPUTS[:, :2]}
    own = data.from_arrays(parts, LABELS, CLIENTS, vocabulary={"user": 3}, standardize="client")
    assert own.inputs["user"].dtype == np.int32
    first = rows(own.train, 2)
    np.testing.assert_allclose(own.inputs["rating"][first].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(own.inputs["text"][first].std(axis=0), 1, atol=1e-5)
    pooled = data.from_arrays(parts, LABELS, CLIENTS, vocabulary={"user": 3}, standardize="pooled")
    assert set(pooled.mean) == {"rating", "text"} and np.shape(pooled.mean["rating"]) == ()


def test_ids_alone_are_refused():
    ids = data.from_arrays(CLIENTS, LABELS, CLIENTS, vocabulary=3)
    with pytest.raises(UserError, match="has ids as inputs"):
        standardize(ids, "client")
    for options, message in (({"split": "plan"}, "plain"), ({"standardize": "owm"}, "own|given")):
        with pytest.raises(UserError, match=message):
            made(**options)
