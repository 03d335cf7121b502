"""CoPL's graph network, rule for new users and gates, against dense matrices in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax.ops import preference_graph as copl

USERS, ITEMS, SIZE = 4, 5, 3
OWNERS = np.array([0, 0, 1, 1, 2, 2, 3])
PAIRS = np.array([[0, 1], [2, 3], [0, 1], [1, 4], [3, 0], [3, 0], [2, 1]])


def adjacency(column):
    """The dense matrix of one sign with parallel edges, and its symmetric normalization."""
    counts = np.zeros((USERS, ITEMS))
    for user, pair in zip(OWNERS, PAIRS, strict=True):
        counts[user, pair[column]] += 1
    degrees = np.sqrt(np.outer(counts.sum(axis=1), counts.sum(axis=0)))
    return counts / np.where(degrees > 0, degrees, 1)


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


@pytest.fixture(scope="module")
def params():
    return copl.init(jax.random.key(0), USERS, ITEMS, SIZE, layers=2)


def test_a_layer_is_the_dense_product(params):
    plus, minus = adjacency(0), adjacency(1)
    user, item = np.asarray(params["user"]), np.asarray(params["item"])
    for layer in params["layers"]:

        def side(own, name, good, bad, layer=layer):
            matrix = {
                part: np.asarray(layer[f"{name}_{part}"]) for part in ("own", "plus", "minus")
            }
            positive = good + (good * own) @ matrix["plus"]
            negative = bad + (bad * own) @ matrix["minus"]
            return leaky(own @ matrix["own"] + positive - negative)

        user, item = (
            side(user, "user", plus @ item, minus @ item),
            side(item, "item", plus.T @ user, minus.T @ user),
        )
    graph = copl.graph_of(OWNERS, PAIRS)
    found = jax.jit(copl.encode)(params, graph)
    np.testing.assert_allclose(found[0], user, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1], item, rtol=1e-4, atol=1e-6)
    # The order of the pairs has no effect, and dropped edges have one.
    order = np.random.default_rng(0).permutation(len(PAIRS))
    shuffled = copl.encode(params, copl.graph_of(OWNERS[order], PAIRS[order]))
    np.testing.assert_allclose(shuffled[0], user, rtol=1e-4, atol=1e-6)
    ones = jnp.ones(len(PAIRS))
    np.testing.assert_allclose(
        copl.encode(params, graph, (ones, ones))[0], user, rtol=1e-4, atol=1e-6
    )
    dropped = copl.encode(params, graph, (ones.at[0].set(0), ones))
    assert np.abs(dropped[0] - user).max() > 1e-3


def test_margins(params):
    pairs = jnp.array([[0, 1], [4, 2]])
    found = copl.margins(params["user"], params["item"], pairs)
    scores = np.asarray(params["user"]) @ np.asarray(params["item"]).T
    np.testing.assert_allclose(found[:, 1], scores[:, 4] - scores[:, 2], rtol=1e-4, atol=1e-6)
    swapped = copl.margins(params["user"], params["item"], pairs[:, ::-1])
    np.testing.assert_allclose(swapped, -found)


def plain_weights(users, items, pairs, neighbours, tau):
    scores = np.full(len(users), -np.inf)
    for v in np.flatnonzero(neighbours):
        gaps = [users[v] @ (items[i] - items[j]) for i, j in pairs]
        scores[v] = np.mean([-np.log1p(np.exp(-gap)) for gap in gaps]) / tau
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def test_a_new_user_is_a_mixture_of_neighbours(params):
    users, items = 5 * params["user"], 5 * params["item"]
    pairs = np.array([[0, 3], [2, 1], [-1, -1]])
    neighbours = np.array([True, True, False, True])
    found = copl.neighbour_weights(users, items, jnp.array(pairs), neighbours)
    wanted = plain_weights(np.asarray(users), np.asarray(items), pairs[:2], neighbours, 0.07)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)
    assert 0.01 < wanted.max() < 0.999, "several users should count"
    # A user with the same tastes counts most, at a low temperature alone.
    margins = np.asarray(copl.margins(users, items, jnp.array(pairs[:2])))
    fits = np.log(1 / (1 + np.exp(-margins))).mean(axis=1)
    best = np.argmax(np.where(neighbours, fits, -np.inf))
    cold = copl.neighbour_weights(users, items, jnp.array(pairs), neighbours, 1e-4)
    np.testing.assert_allclose(cold[best], 1, atol=1e-3)


def test_a_new_user_without_neighbours_or_pairs(params):
    none, everyone = np.zeros(USERS, bool), np.ones(USERS, bool)
    padding = jnp.full((2, 2), -1)
    found = copl.neighbour_weights(params["user"], params["item"], padding, none)
    np.testing.assert_allclose(found, 1 / USERS, rtol=1e-6)
    pairs = jnp.array([[0, 1]])
    alone = copl.neighbour_weights(params["user"], params["item"], pairs, none)
    of_all = copl.neighbour_weights(params["user"], params["item"], pairs, everyone)
    np.testing.assert_allclose(alone, of_all)
    assert np.ptp(of_all) > 1e-3


@pytest.mark.parametrize("top", [1, 2, 3])
def test_rewards_of_the_experts_with_the_largest_gates(top):
    rewards = copl.init_rewards(jax.random.key(1), SIZE, width=6, experts=3, hidden=4)
    rewards["common"] = jnp.arange(6.0)
    user = 3 * jax.random.normal(jax.random.key(2), (7, SIZE))
    found = copl.reward_weights(rewards, user, 0.5, top)
    first, second = (jax.tree.map(np.asarray, layer) for layer in rewards["gate"])
    hidden = np.maximum(np.asarray(user) @ first["kernel"] + first["bias"], 0)
    logits = (hidden @ second["kernel"] + second["bias"]) / 0.5
    gates = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for row in gates:
        row[np.argsort(-row)[top:]] = 0
    wanted = np.arange(6.0) + gates @ np.asarray(rewards["experts"])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    # The gate is trained through the gates of the selected experts.
    slope = jax.grad(lambda p: jnp.sum(copl.reward_weights(p, user, 0.5, top) ** 2))(rewards)
    assert np.abs(slope["gate"][0]["kernel"]).max() > 1e-6
    assert np.isfinite(jax.tree.leaves(slope)[0]).all()
