"""Arithmetic on pytrees of arrays, named as in optax.tree where it has the same operation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

PyTree = Any

add = optax.tree.add
subtract = optax.tree.sub
scale = optax.tree.scale
zeros_like = optax.tree.zeros_like


def dtype(tree: PyTree) -> jnp.dtype:
    """Returns the dtype that all leaves can be promoted to."""
    return jnp.result_type(*jax.tree.leaves(tree))


def divide(tree: PyTree, number: jax.Array) -> PyTree:
    """Returns `tree / number` in the dtype of each leaf, whatever that of the scalar `number`."""
    return jax.tree.map(lambda leaf: leaf / jnp.asarray(number, leaf.dtype), tree)


def add_scale(a: PyTree, factor: jax.Array | float, b: PyTree) -> PyTree:
    """Returns `a + factor b` in the dtype of each leaf of `a`, whatever that of `factor`, `[]`."""
    return jax.tree.map(lambda x, y: x + jnp.asarray(factor, x.dtype) * y, a, b)


def squared_norm(tree: PyTree) -> jax.Array:
    """Returns `[]`, the sum of the squares of all entries; its gradient at zero is zero."""
    return sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)), start=0.0)


def squared_distance(a: PyTree, b: PyTree) -> jax.Array:
    """Returns `[]`, `||a - b||^2` over all entries of two trees of one structure."""
    return squared_norm(subtract(a, b))


def where(condition: jax.Array, a: PyTree, b: PyTree) -> PyTree:
    """Returns `a` where the scalar `condition` holds, else `b`, leaf by leaf."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def after(tree: PyTree, number: jax.Array) -> PyTree:
    """Returns `tree` unchanged, but only after the finite scalar `number` has been computed.

    Used for in-place updates of arrays that are also summed: XLA copies the arrays unless the
    update depends on the sum.
    """
    return jax.tree.map(lambda leaf: leaf + 0 * jnp.asarray(number, leaf.dtype), tree)


def is_finite(tree: PyTree) -> jax.Array:
    """Returns `[]` bool, whether all floating-point entries are finite numbers."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves], bool))


def size(tree: PyTree) -> int:
    """Returns the number of entries of the arrays (or shapes) in `tree`."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
    """Returns the number of bytes of the arrays (or shapes) in `tree`."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def num_bytes_beside(tree: PyTree, other: PyTree) -> int:
    """Returns the number of bytes of the arrays in `tree` that are not objects of `other`.

    An object that `tree` contains several times counts once.
    """
    known = {id(leaf) for leaf in jax.tree.leaves(other)}
    distinct = {id(leaf): leaf for leaf in jax.tree.leaves(tree)}
    return num_bytes([leaf for key, leaf in distinct.items() if key not in known])


def is_key(leaf: jax.Array) -> bool:
    """Whether an array holds typed PRNG keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_data(leaf: jax.Array) -> jax.Array:
    """Returns the data of typed PRNG keys, and other arrays unchanged."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def wrap_key_data(leaf: jax.Array, like: jax.Array) -> jax.Array:
    """Returns the inverse of `key_data`; `like` is the original array, or its shape."""
    if not is_key(like):
        return leaf
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like))
