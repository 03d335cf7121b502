"""Weighted means as sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import core
from pfljax.core import tree


def tree_of(a, b):
    return {"a": jnp.full((2,), a, jnp.float32), "b": [jnp.float32(b)]}


def test_the_mean_of_weighted_terms():
    terms = [(tree_of(1, 10), 3), (tree_of(5, -2), 1), (tree_of(7, 7), 0)]
    total = core.weighted(*terms[0])
    for term in terms[1:]:
        total = tree.add(total, core.weighted(*term))
    mean = core.mean(total)
    np.testing.assert_allclose(mean["a"], (3 * 1 + 1 * 5) / 4, rtol=1e-6)
    np.testing.assert_allclose(mean["b"][0], (3 * 10 + 1 * -2) / 4, rtol=1e-6)


def test_no_weight_gives_zeros():
    total = core.weighted(tree_of(3, 4), 0)
    assert total.weight == 0
    for leaf in jax.tree.leaves(core.mean(total)):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize("weight", [3, 0.5, np.int32(3), np.float64(2)])
def test_dtypes_are_those_of_the_tree(weight):
    mixed = {"half": jnp.ones(2, jnp.float16), "single": jnp.ones(2, jnp.float32)}
    total = core.weighted(mixed, weight)
    mean = core.mean(total)
    assert (mean["half"].dtype, mean["single"].dtype) == (jnp.float16, jnp.float32)
    np.testing.assert_allclose(mean["single"], 1)


def test_float64_stays_exact():
    with jax.enable_x64(True):
        exact = jnp.float64(1) + jnp.float64(2) ** -40
        total = core.weighted({"x": exact}, jnp.int32(3))
        mean = core.mean(total)["x"]
        assert total.weight.dtype == mean.dtype == jnp.float64
        np.testing.assert_allclose(float(mean), 1 + 2.0**-40, rtol=0, atol=2.0**-50)


def test_shares_of_counts():
    found = core.shares(jnp.array([[1, 0], [3, 0]]), jnp.float32)
    np.testing.assert_array_equal(found, [[0.25, 0], [0.75, 0]])
