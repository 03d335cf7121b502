"""Arithmetic on trees."""

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.core import tree


def test_squared_distance():
    a = {"x": jnp.array([1.0, 2.0]), "y": jnp.array(3.0)}
    b = {"x": jnp.array([0.0, 4.0]), "y": jnp.array(0.0)}
    assert tree.squared_distance(a, b) == 1 + 4 + 9


def test_the_gradient_at_no_distance_is_zero():
    a = {"x": jnp.array([1.0, 2.0]), "y": jnp.array(3.0)}
    for leaf in jax.tree.leaves(jax.grad(tree.squared_distance)(a, a)):
        np.testing.assert_array_equal(leaf, 0)


def test_an_empty_tree():
    assert tree.squared_norm({}) == 0
    assert tree.num_bytes(()) == 0


def test_divide_keeps_each_dtype():
    halves = {"half": jnp.ones(3, jnp.float16), "single": jnp.ones(3, jnp.float32)}
    quotient = tree.divide(halves, jnp.float32(4))
    assert (quotient["half"].dtype, quotient["single"].dtype) == (jnp.float16, jnp.float32)
    np.testing.assert_array_equal(quotient["half"], 0.25)


def test_add_scale_keeps_each_dtype():
    halves = {"half": jnp.ones(3, jnp.float16), "single": jnp.ones(3, jnp.float32)}
    total = tree.add_scale(halves, jnp.float32(0.5), halves)
    assert (total["half"].dtype, total["single"].dtype) == (jnp.float16, jnp.float32)
    np.testing.assert_array_equal(total["half"], 1.5)


def test_where_chooses_whole_trees():
    a, b = {"x": jnp.zeros(2), "k": jax.random.key(0)}, {"x": jnp.ones(2), "k": jax.random.key(1)}
    np.testing.assert_array_equal(tree.where(jnp.bool_(True), a, b)["x"], 0)
    np.testing.assert_array_equal(tree.where(jnp.bool_(False), a, b)["x"], 1)
    chosen = tree.where(jnp.bool_(False), a, b)["k"]
    np.testing.assert_array_equal(jax.random.key_data(chosen), jax.random.key_data(b["k"]))


def test_num_bytes_of_arrays_and_of_shapes():
    leaves = {
        "floats": jnp.zeros((3, 5), jnp.float32),
        "bytes": np.zeros(7, np.uint8),
        "scalar": jax.ShapeDtypeStruct((), jnp.float16),
        "none": jnp.zeros((0, 4), jnp.float32),
    }
    assert tree.num_bytes(leaves) == 60 + 7 + 2 + 0
    assert tree.size(leaves) == 15 + 7 + 1 + 0
    assert tree.dtype({"half": jnp.ones(3, jnp.float16), "single": jnp.ones(3)}) == jnp.float32
