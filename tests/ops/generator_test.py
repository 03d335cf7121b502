"""The generator of features: its draws, and what keeps it from making always the same."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pfljax.ops import generator
from pfljax.ops.minimize import minimize


def test_no_label_is_drawn_that_no_client_has():
    shares = jnp.array([0.25, 0.0, 0.75])
    labels, noise = generator.draw(jax.random.key(0), shares, 400, 2, True)
    counts = np.bincount(labels, minlength=3)
    assert counts[1] == 0 and abs(counts[0] - 100) < 40
    assert noise.shape == (400, 2) and 0 <= noise.min() and noise.max() < 1
    _, noise = generator.draw(jax.random.key(0), shares, 400, 2, False)
    assert noise.min() < 0 and abs(noise.std() - 1) < 0.1


def test_likeness_is_greatest_where_noise_makes_no_difference():
    noise = jnp.array([[0.0, 0.0], [2.0, 0.0]])
    assert generator.likeness(jnp.ones((2, 3)), noise) == 1
    apart = generator.likeness(jnp.array([[0.0, 0.0], [1.0, 3.0]]), noise)
    np.testing.assert_allclose(apart, np.exp(-2 * 2 * 2 / 4))  # two of four pairs, |z| 2, |e|^2 2


def test_learning_from_draws():
    made = generator.init(jax.random.key(0), 3, 2, 8, 4, jnp.float32)
    labels, noise = jnp.array([0, 1, 1, 0]), jax.random.normal(jax.random.key(1), (4, 3))

    def objective(made, key):
        return jnp.mean((generator.generate(made, labels, noise) - 1) ** 2)

    adam = optax.adam(0.05)
    keys = jax.random.split(jax.random.key(2), 200)
    learned, state = minimize(objective, made, adam, adam.init(made), keys)
    assert objective(made, None) > 0.1 > 0.01 > objective(learned, None)
    assert optax.tree.get(state, "count") == 200
