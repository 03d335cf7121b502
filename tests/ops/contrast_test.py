"""The contrastive loss against a loop over examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax.core import Batch
from pfljax.ops import contrast
from pfljax.ops.prototypes import Prototypes

DRAW = np.random.default_rng(0)
FEATURES = DRAW.normal(size=(5, 2)).astype(np.float32)
BATCH = Batch(None, jnp.array([0, 1, 3, 1, 0]), jnp.array([True, True, True, True, False]))
KNOWN = Prototypes(
    jnp.asarray(DRAW.normal(size=(3, 4, 2)).astype(np.float32)),
    jnp.array([[1, 1, 0, 1], [1, 1, 1, 0], [0, 1, 0, 0]], bool),
)


@pytest.mark.parametrize("own_class", [True, False])
def test_the_mean_for_each_set_of_prototypes(own_class):
    found = contrast.loss(FEATURES, BATCH, KNOWN, 0.5, own_class)
    for means, seen, mean in zip(*KNOWN, found, strict=True):
        expected = 0.0
        for u, y in zip(FEATURES[:4], np.asarray(BATCH.targets), strict=False):
            rivals = [c for c in range(4) if seen[c] and (own_class or c != y)]
            if seen[y] and rivals:
                products = np.asarray(means) @ u / 0.5
                expected += np.log(np.sum(np.exp(products[rivals]))) - products[y]
        np.testing.assert_allclose(mean, expected / 4, rtol=1e-5, atol=1e-6)
    assert own_class or found[2] == 0  # A class without another one.


def test_gradients_are_finite_without_prototypes():
    none = Prototypes(jnp.zeros((4, 2)), jnp.zeros(4, bool))
    slope = jax.grad(lambda u: contrast.loss(u, BATCH, none, 0.07, False))(FEATURES)
    np.testing.assert_array_equal(slope, 0)
