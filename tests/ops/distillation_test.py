"""Losses between two models' outputs, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.ops import distillation

MASK = jnp.array([True, False, True])


def test_divergence_over_real_examples():
    target, logits = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (target, logits))
    expected = (p * np.log(p / q)).sum(axis=1)[[0, 2]].mean()
    found, slope = jax.value_and_grad(distillation.divergence, argnums=1)(target, logits, MASK)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(slope[0], (q - p)[0] / 2, atol=1e-6)
    np.testing.assert_array_equal(slope[1], 0)
    np.testing.assert_allclose(distillation.divergence(target, target + 1, MASK), 0, atol=1e-6)


def test_distance_over_real_examples():
    a, b = jnp.zeros((3, 2)), jnp.array([[1.0, 3.0], [9.0, 9.0], [0.0, 2.0]])
    assert distillation.distance(a, b, MASK) == (5 + 2) / 2
    assert distillation.distance(a, b, jnp.zeros(3, bool)) == 0


def test_divergence_of_the_classes_that_are_not_true():
    target, logits = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    labels = jnp.array([1, 0, 3])
    rows = [
        np.delete(x, label, axis=1)[i] for x in (target, logits) for i, label in ((0, 1), (2, 3))
    ]
    target_rows, rows = np.stack(rows[:2]), np.stack(rows[2:])
    expected = distillation.divergence(target_rows, rows, jnp.ones(2, bool))
    found = distillation.not_true_divergence(target, logits, labels, MASK)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    slope = jax.grad(distillation.not_true_divergence, argnums=1)(target, logits, labels, MASK)
    np.testing.assert_array_equal(slope[jnp.arange(3), labels], 0)
    assert np.any(slope[0] != 0) and np.all(slope[1] == 0)
