"""Layers as plain arrays."""

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.ops import linear


def test_a_layer_is_affine_with_small_numbers():
    layer = linear.init(jax.random.key(0), 4, 3, jnp.float32)
    assert max(jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(layer)) <= 0.5
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    np.testing.assert_allclose(
        linear.apply(layer, x), x @ layer["kernel"] + layer["bias"], rtol=1e-5
    )


def test_normalizing_over_a_batch_or_over_an_example():
    x = jnp.array(np.random.default_rng(0).normal(2, 3, size=(6, 5)))
    norm = linear.init_norm(5, jnp.float32)
    for axis in (0, 1):
        normal = linear.normalize(norm, x, axis)
        np.testing.assert_allclose(jnp.mean(normal, axis=axis), 0, atol=1e-5)
        np.testing.assert_allclose(jnp.var(normal, axis=axis), 1, atol=1e-3)
    scaled = {"scale": jnp.full(5, 2.0), "bias": jnp.arange(5.0)}
    expected = 2 * linear.normalize(norm, x, 0) + jnp.arange(5)
    np.testing.assert_allclose(linear.normalize(scaled, x, 0), expected, rtol=1e-5)
    assert jnp.all(jnp.isfinite(linear.normalize(norm, jnp.ones((1, 5)), 0)))
