"""The network of histories: what it reads, and its outputs against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import models
from pfljax.errors import UserError

SIZES = (9, 5, 7, 7)
MODEL = models.MODELS["unimp"]((4,), 3, vocabulary=SIZES, width=4, history=3, heads=2)
PARAMS = MODEL.init(jax.random.key(0))
# Two choices, an item of the history that is older than three positions, and the last three.
ITEMS = np.array(
    [[[1, 0, 1, 2], [2, 0, 3, 0], [3, 4, 1, 1], [4, 1, 0, 0], [5, 2, 6, 5], [6, 3, 2, 2]]], np.int32
)


def outputs(items):
    return np.asarray(MODEL.head(PARAMS, MODEL.features(PARAMS, jnp.array(items))))


def changed(position, **columns):
    items = ITEMS.copy()
    for name, value in columns.items():
        items[0, position, ("id", "rating", "first", "second").index(name)] = value
    return outputs(items)


def test_items_are_vectors_and_means_of_their_attributes():
    table = {name: np.asarray(rows["embedding"]) for name, rows in PARAMS["body"]["items"].items()}
    features = np.asarray(MODEL.features(PARAMS, jnp.array(ITEMS)))[0]
    for row, item in zip(features[1:], ITEMS[0], strict=True):
        own = [table["attributes"][id] for id in item[2:] if id]
        wanted = table["vectors"][item[0]] + (np.mean(own, axis=0) if own else 0)
        np.testing.assert_allclose(row[:-1], wanted, rtol=1e-5, atol=1e-7)
        assert row[-1] == table["biases"][item[0], 0]
    head = {
        name: {key: np.asarray(x) for key, x in part.items()}
        for name, part in PARAMS["head"].items()
    }
    state, items = features[0, :-1], features[1:, :-1]
    query = state @ head["query"]["kernel"] + head["query"]["bias"]
    pair = np.concatenate([state * items[0], state, items[0]])
    rating = pair @ head["rating"]["kernel"] + head["rating"]["bias"]
    tags = state @ head["tags"]["kernel"] + head["tags"]["bias"]
    wanted = np.concatenate([items @ query + features[1:, -1], rating, tags])
    np.testing.assert_allclose(outputs(ITEMS)[0], wanted, rtol=1e-4, atol=1e-5)


def test_the_state_reads_rated_items_of_the_last_positions_only():
    before = outputs(ITEMS)
    tags = slice(-3, None)  # they depend on the state alone
    assert not np.allclose(changed(4, id=8)[:, tags], before[:, tags])
    assert not np.allclose(changed(4, rating=4)[:, tags], before[:, tags])
    swapped = ITEMS[:, [0, 1, 2, 4, 3, 5]]
    assert not np.allclose(outputs(swapped)[:, tags], before[:, tags]), "positions matter"
    for position in (0, 1, 2):
        np.testing.assert_allclose(changed(position, id=8)[:, tags], before[:, tags], rtol=1e-5)
    unrated = ITEMS.copy()
    unrated[0, 4, 1] = 0
    others = unrated.copy()
    others[0, 4] = [8, 0, 4, 4]
    np.testing.assert_allclose(outputs(unrated)[:, tags], outputs(others)[:, tags], rtol=1e-5)


def test_without_a_history_the_outputs_are_finite():
    assert np.isfinite(outputs(np.where(np.arange(6)[:, None] < 2, ITEMS, 0))).all()


@pytest.mark.parametrize(
    "shape, changes, message",
    [
        ((3,), {}, "unimp reads items of an id, a rating and attributes"),
        ((4, 2), {}, "unimp reads items"),
        ((4,), {"vocabulary": (9, 5, 7, 8)}, "unimp reads items"),
        ((4,), {"vocabulary": 9}, "unimp reads items"),
        ((4,), {"heads": 3}, "multiple of the heads"),
        ((4,), {"history": 0}, "config.model.history is 0"),
    ],
)
def test_what_the_user_has_to_change(shape, changes, message):
    arguments = {"vocabulary": SIZES, "width": 4} | changes
    with pytest.raises(UserError, match=message):
        models.MODELS["unimp"](shape, 3, **arguments)
