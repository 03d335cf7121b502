"""CoPL's stages: the rule for new users in NumPy, the step that is kept, and users of two kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax.ops import copl


def test_new_users_are_mixtures_of_users_with_the_same_answers():
    draw = jax.random.normal(jax.random.key(0), (9, 4))
    known_users, items = 3 * draw[:3], draw[3:]
    known = copl.Pairs(np.array([0, 1, 2]), np.array([[0, 1], [2, 3], [4, 5]]))
    new = copl.Pairs(np.array([1, 0, 1]), np.array([[0, 2], [4, 0], [3, 1]]))
    found = copl.new_users((known_users, items), known, new, 2, 0.5)
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

    settings = copl.Settings(steps=60, every=1)
    best, found = copl.descend(loss, score, jnp.float32(0), 0.1, settings)
    assert abs(best - 1) < 0.06 and found == pytest.approx(-abs(float(best) - 1), abs=1e-6)
    params, score_of_best, rate = copl.best_of(
        [1.0, 2.0, 0.5], lambda rate: (rate, -((rate - 1.9) ** 2))
    )
    assert params == rate == 2.0 and score_of_best == pytest.approx(-0.01)


def test_a_reward_is_predicted_for_answers_outside_the_graph():
    """Users like one of two features; the pairs that are scored have answers without an edge."""
    draw = np.random.default_rng(0)
    features = draw.normal(size=(60, 2)).astype(np.float32)

    def pairs(answers, each):
        user = np.repeat(np.arange(20), each)
        items = draw.choice(answers, (len(user), 2))
        likes = features[:, user % 2].T
        rows = np.arange(len(user))
        swapped = likes[rows, items[:, 0]] < likes[rows, items[:, 1]]
        return copl.Pairs(user, np.where(swapped[:, None], items[:, ::-1], items))

    train, validation, test = pairs(30, 30), pairs(30, 6), pairs(np.arange(30, 60), 10)
    settings = copl.Settings(size=8, steps=120, every=20)
    model = copl.fit(train, validation, 20, features, [0.03, 0.1], settings)
    assert set(model.rates) == {"graph", "one expert", "all experts"}
    assert set(model.rates.values()) <= {0.03, 0.1}
    different = test.items[:, 0] != test.items[:, 1]
    found = copl.margins(model, model.users, features, test.of(different), settings)
    right = {name: float(np.mean(of > 0)) for name, of in found.items()}
    assert right["all experts"] > 0.85, right
    assert right["graph"] < 0.7, right  # embeddings without an edge say nothing
    standard = model.standardized(model.users)
    np.testing.assert_allclose(np.mean(standard, axis=0), 0, atol=1e-5)
