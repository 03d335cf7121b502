"""Minimizing: the steps of an optimizer with momentum, each on a sample of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pfljax.ops.minimize import minimize


def test_each_step_is_on_the_sample_of_its_key():
    keys = jax.random.split(jax.random.key(0), 5)

    def objective(params, key):
        return jnp.sum((params["x"] - jax.random.normal(key, (3,))) ** 2) / 2

    start, optimizer = {"x": jnp.array([1.0, -2.0, 0.0])}, optax.sgd(0.1, momentum=0.9)
    found, state = minimize(objective, start, optimizer, optimizer.init(start), keys)
    x, trace = np.array(start["x"]), np.zeros(3)
    for key in keys:
        trace = 0.9 * trace + (x - np.array(jax.random.normal(key, (3,))))
        x = x - 0.1 * trace
    np.testing.assert_allclose(found["x"], x, rtol=1e-6)
    np.testing.assert_allclose(optax.tree.get(state, "trace")["x"], trace, rtol=1e-6)


def test_steps_in_two_parts_are_those_of_one():
    keys = jax.random.split(jax.random.key(1), 6)
    adam, start = optax.adam(0.1), jnp.array([3.0, -1.0])

    def objective(x, key):
        return jnp.sum((x - jax.random.uniform(key)) ** 4)

    whole = minimize(objective, start, adam, adam.init(start), keys)
    part = minimize(objective, start, adam, adam.init(start), keys[:2])
    resumed = minimize(objective, part[0], adam, part[1], keys[2:])
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_without_keys_nothing_changes():
    adam, start = optax.adam(0.1), jnp.array([3.0])
    keys = jax.random.split(jax.random.key(1), 1)[:0]
    found, state = minimize(lambda x, key: jnp.sum(x**2), start, adam, adam.init(start), keys)
    np.testing.assert_array_equal(found, start)
    assert optax.tree.get(state, "count") == 0
