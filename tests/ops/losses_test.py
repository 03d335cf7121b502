"""The cross-entropy of a batch with padding, against NumPy."""

import jax.numpy as jnp
import numpy as np

from pfljax import core
from pfljax.ops import losses


def test_cross_entropy_of_the_real_examples():
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    labels, mask = np.array([0, 2, 1, 1]), np.array([True, True, False, True])
    batch = core.Batch(None, jnp.asarray(labels), jnp.asarray(mask))
    each = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(4), labels]
    np.testing.assert_allclose(losses.cross_entropy(logits, batch), each[mask].mean(), rtol=1e-6)
    nothing = batch._replace(mask=jnp.zeros(4, bool))
    assert losses.cross_entropy(logits, nothing) == 0
