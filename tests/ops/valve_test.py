"""The conditional valve against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.ops import valve


def test_features_for_a_condition():
    params = valve.init(jax.random.key(0), 4, jnp.float32)
    features, condition = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    condition = condition[0]

    def part(layer):
        hidden = condition @ layer["linear"]["kernel"] + layer["linear"]["bias"]
        hidden = np.maximum(np.asarray(hidden), 0)
        return (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)

    expected = np.maximum(features * (part(params["gamma"]) + 1) + part(params["beta"]), 0)
    found = valve.apply(params, features, condition)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    other = valve.apply(params, features, -condition)
    assert np.max(np.abs(found - other)) > 1e-2


def test_a_valve_whose_norms_are_zero_passes_positive_features():
    params = valve.init(jax.random.key(0), 4, jnp.float32)
    for part in valve.PARTS:
        params[part]["norm"] = {"scale": jnp.zeros(4), "bias": jnp.zeros(4)}
    features = np.abs(np.random.default_rng(0).normal(size=(3, 4))).astype(np.float32)
    np.testing.assert_array_equal(valve.apply(params, features, jnp.ones(4)), features)
