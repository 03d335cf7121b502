"""Logits of some of the classes."""

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.ops.logits import among, behind


def test_excluded_classes_have_no_probability_and_no_slope():
    logits = jnp.array([[1.0, 2.0, 0.5], [-3.0, 4.0, 1.0]])
    included = jnp.array([True, False, True])
    expected = jax.nn.softmax(logits[:, [0, 2]])
    found = jax.nn.softmax(among(logits, included))
    np.testing.assert_allclose(found[:, [0, 2]], expected, rtol=1e-6)
    np.testing.assert_array_equal(found[:, 1], 0)
    slope = jax.grad(lambda x: jnp.sum(jax.nn.logsumexp(among(x, included), axis=1)))(logits)
    np.testing.assert_array_equal(slope[:, 1], 0)
    assert np.all(np.isfinite(jax.nn.log_softmax(among(logits, jnp.zeros(3, bool)))))


def test_excluded_classes_are_behind_the_others():
    logits = jnp.array([[1.0, 9.0, 0.5], [-3.0, 4.0, 1.0]])
    found = behind(logits, jnp.array([True, False, True]))
    np.testing.assert_array_equal(found, [[1.0, -0.5, 0.5], [-3.0, -4.0, 1.0]])
    np.testing.assert_array_equal(behind(logits, jnp.zeros(3, bool)), logits)
