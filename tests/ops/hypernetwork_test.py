"""The hypernetwork: its first models, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax.ops import hypernetwork

MODEL = {"body": {"kernel": jnp.full((3, 2), 2.0)}, "head": {"bias": jnp.zeros(4)}}


@pytest.mark.parametrize("layers", [0, 2])
def test_first_models_are_near_the_one_given(layers):
    network = hypernetwork.init(jax.random.key(0), MODEL, 5, 64, layers, 0.1)
    embeddings = jax.random.normal(jax.random.key(1), (50, 5))
    made = hypernetwork.generate(network, embeddings)
    assert jax.tree.map(jnp.shape, made) == {
        "body": {"kernel": (50, 3, 2)},
        "head": {"bias": (50, 4)},
    }
    spread = np.std(made["body"]["kernel"] - 2.0)
    assert 0.05 < spread < 0.4  # a tenth of 2
    np.testing.assert_array_equal(made["head"]["bias"], 0)
    one = hypernetwork.generate(network, embeddings[7])
    np.testing.assert_allclose(one["body"]["kernel"], made["body"]["kernel"][7], rtol=1e-5)


def test_descent_on_what_is_pulled_back_moves_the_model_along_the_change():
    network = hypernetwork.init(jax.random.key(0), MODEL, 5, 16, 1, 0.1)
    embedding = jax.random.normal(jax.random.key(1), (5,))
    change = jax.tree.map(jnp.ones_like, MODEL)
    slopes = hypernetwork.pull_back(network, embedding, change)
    moved = jax.tree.map(lambda x, g: x - 1e-3 * g, (network, embedding), slopes)
    before, after = hypernetwork.generate(network, embedding), hypernetwork.generate(*moved)
    gained = sum(
        jnp.sum(b - a) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)
    )
    squares = sum(jnp.sum(g**2) for g in jax.tree.leaves(slopes))
    np.testing.assert_allclose(gained, 1e-3 * squares, rtol=0.05)
