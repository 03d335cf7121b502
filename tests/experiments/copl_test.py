"""CoPL's three stages on a few users of two kinds, and the rule for new users in NumPy."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import data
from pfljax.errors import UserError

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "copl.py"


def load():
    """Returns the script as a module."""
    spec = importlib.util.spec_from_file_location("copl", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load()
SETTINGS = script.Settings(size=16, steps=120, every=20)


def users(**changes):
    options = {"users": 120, "prompts": 5, "width": 6, "rewards": 2, "alpha": 0.01}
    arguments = {"validation_fraction": 0.2, "unseen_fraction": 0.2, **changes}
    return data.load(
        name="simulated_preferences", partition="natural", options=options, **arguments
    )


def test_pairs_name_distinct_answers():
    dataset = users()
    pairs, features = script.pairs_of(dataset)
    assert len(features) == 40  # all answers of the five prompts
    for name, of in pairs.items():
        split = getattr(dataset, name)
        assert len(of.user) == split.sizes.sum()
        client = int(np.argmax(split.sizes > 0))
        rows = slice(split.offsets[client], split.offsets[client] + split.sizes[client])
        np.testing.assert_allclose(
            features[of.items[of.user == client]], dataset.inputs[rows], rtol=1e-5
        )


def test_users_of_two_kinds_are_distinguished():
    """Known and new users are predicted; a reward common to all could not do both kinds."""
    found, rates = script.evaluate(users(), [0.01], SETTINGS)
    assert set(rates.values()) == {0.01}
    assert list(found) == ["CoPL, graph", "CoPL, one expert", "CoPL, all experts"]
    for seen, unseen in found.values():
        assert min(seen, unseen) > 0.85, found
    few = SETTINGS._replace(steps=20)
    without, _ = script.evaluate(users(unseen_fraction=0.0), [0.01], few)
    assert np.isnan(without["CoPL, graph"][1])


def test_new_users_are_mixtures_of_users_with_the_same_answers():
    draw = jax.random.normal(jax.random.key(0), (9, 4))
    known_users, items = 3 * draw[:3], draw[3:]
    known = script.Pairs(np.array([0, 1, 2]), np.array([[0, 1], [2, 3], [4, 5]]))
    new = script.Pairs(np.array([1, 0, 1]), np.array([[0, 2], [4, 0], [3, 1]]))
    found = script.new_users((known_users, items), known, new, 2, 0.5)
    for user, neighbours in ((0, [0, 2]), (1, [0, 1])):
        fits = []
        for v in neighbours:
            gaps = [known_users[v] @ (items[i] - items[j]) for i, j in new.items[new.user == user]]
            fits.append(np.mean(np.log(1 / (1 + np.exp(-np.array(gaps))))) / 0.5)
        weights = np.exp(fits) / np.exp(fits).sum()
        np.testing.assert_allclose(
            found[user], weights @ known_users[np.array(neighbours)], rtol=1e-3
        )


def test_the_best_step_is_kept():
    def loss(params, key):
        return (params - 3.0) ** 2

    def score(params):  # better up to 1, and then worse
        return -jnp.abs(params - 1.0)

    settings = script.Settings(steps=60, every=1)
    best, found = script.descend(loss, score, jnp.float32(0), 0.1, settings)
    assert abs(best - 1) < 0.06 and found == pytest.approx(-abs(float(best) - 1), abs=1e-6)
    params, score_of_best, rate = script.best_of(
        [1.0, 2.0, 0.5], lambda rate: (rate, -((rate - 1.9) ** 2))
    )
    assert params == rate == 2.0 and score_of_best == pytest.approx(-0.01)


def test_validation_pairs_are_needed():
    with pytest.raises(UserError, match="set config.data.validation_fraction"):
        script.evaluate(users(validation_fraction=0.0), [0.01], SETTINGS)
