"""Weights as data: the flattened params of many clients as rows of a matrix.

Shapes in the docstrings: `N` clients, `P` parameters of a model, `K` coefficients of a client, `C`
entries of a condition, which describes a client.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax.core.types import Params
from pfljax.ops import linear_algebra
from pfljax.ops.minimize import minimize


class Scale(NamedTuple):
    """The standardization of the columns of a matrix.

    Attributes:
      mean: `[P]`.
      std: `[P]`, above 0; 1 for a constant column.
    """

    mean: jax.Array
    std: jax.Array

    def apply(self, rows: jax.Array) -> jax.Array:
        """Returns rows `[..., P]` whose columns have mean 0 and, if not constant, variance 1."""
        return (rows - self.mean) / self.std

    def undo(self, rows: jax.Array) -> jax.Array:
        """Returns the rows `[..., P]` that `apply` standardized."""
        return rows * self.std + self.mean


class Basis(NamedTuple):
    """A mean and directions, of which a row is a linear combination.

        row = mean + sum_k c_k std_k direction_k

    Attributes:
      mean: `[P]`.
      directions: `[K, P]`; orthonormal if they are principal directions.
      std: `[K]`, above 0, the unit of each coefficient.
    """

    mean: jax.Array
    directions: jax.Array
    std: jax.Array

    def project(self, rows: jax.Array) -> jax.Array:
        """Returns the coefficients `[..., K]` of rows `[..., P]`, for orthonormal directions."""
        return (rows - self.mean) @ self.directions.T / self.std

    def expand(self, coefficients: jax.Array) -> jax.Array:
        """Returns the rows `[..., P]` of coefficients `[..., K]`."""
        return self.mean + (coefficients * self.std) @ self.directions

    def first(self, size: int) -> Basis:
        """Returns the basis of the first `size` directions; of all if there are fewer."""
        return Basis(self.mean, self.directions[:size], self.std[:size])


class Affine(NamedTuple):
    """An affine map of conditions.

    Attributes:
      kernel: `[C, K]`.
      bias: `[K]`.
    """

    kernel: jax.Array
    bias: jax.Array

    def apply(self, conditions: jax.Array) -> jax.Array:
        """Returns `[..., K]`, the targets that are predicted from conditions `[..., C]`."""
        return conditions @ self.kernel + self.bias


def flatten(stacked: Params) -> tuple[jax.Array, Callable[[jax.Array], Params]]:
    """Returns stacked params as rows, and the inverse function for any number of rows.

    A row has the order of `jax.flatten_util.ravel_pytree`.

    Args:
      stacked: The params of clients, leaves `[N, ...]` of one dtype.

    Returns:
      Rows `[N, P]`, and `[M, P] -> params` with leaves `[M, ...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> rows, unflatten = flatten({"bias": jnp.zeros((3, 2)), "kernel": jnp.ones((3, 4, 2))})
      >>> rows.shape, unflatten(rows[:1])["kernel"].shape
      ((3, 10), (1, 4, 2))
    """
    leaves, structure = jax.tree.flatten(stacked)
    shapes = [leaf.shape[1:] for leaf in leaves]
    ends = [sum(math.prod(shape) for shape in shapes[: n + 1]) for n in range(len(shapes))]

    def unflatten(rows):
        parts = jnp.split(rows, ends[:-1], axis=1)
        pairs = zip(parts, shapes, strict=True)
        return jax.tree.unflatten(structure, [p.reshape(len(rows), *shape) for p, shape in pairs])

    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1), unflatten


def standardization(rows: jax.Array) -> Scale:
    """Returns the standardization of rows `[N, P]` by the mean and deviation of each column."""
    std = jnp.std(rows, axis=0)
    return Scale(jnp.mean(rows, axis=0), jnp.where(std > 0, std, 1))


def pca(rows: jax.Array, size: int) -> Basis:
    """Returns the principal directions of rows, those of the largest variance first.

    By the thin singular value decomposition of the centred rows. Directions without variance are
    left out: there are at most `min(size, N - 1, P)`. The entry of a direction with the largest
    absolute value is positive.

    Args:
      rows: `[N, P]`, two rows or more.
      size: The largest number of directions.

    Returns:
      The basis, whose `std` are the standard deviations `sqrt(variance)` along the directions, with
      `N - 1` in the denominator; not for use under `jit`, as the number of directions depends on
      the values.
    """
    mean = jnp.mean(rows, axis=0)
    _, values, directions = linear_algebra.svd(rows - mean)
    # Rounding leaves singular values of this size where there is no variance.
    noise = max(rows.shape) * jnp.finfo(rows.dtype).eps * values[0]
    found = min(size, len(rows) - 1, int(jnp.sum(values > noise)))
    directions = directions[:found]
    largest = jnp.argmax(jnp.abs(directions), axis=1)[:, None]
    directions = directions * jnp.sign(jnp.take_along_axis(directions, largest, axis=1))
    return Basis(mean, directions, values[:found] / math.sqrt(len(rows) - 1))


def fit_coefficients(
    losses: Callable[[jax.Array], jax.Array],
    basis: Basis,
    coefficients: jax.Array,
    rate: float,
    steps: int,
) -> jax.Array:
    """Returns the coefficients of clients after steps of Adam on their losses (Celeb Basis).

        min_c L_k(mean + sum_j c_j std_j direction_j), for each client k

    Args:
      losses: `rows [N, P] -> [N]`, the loss of each client, which depends on its own row only.
      basis: The mean and the directions.
      coefficients: `[N, K]`, the initial coefficients.
      rate: Learning rate of Adam, in units of `basis.std`.
      steps: Number of steps.

    References:
      Yuan et al., "Inserting Anybody in Diffusion Models via Celeb Basis", 2023,
      https://arxiv.org/abs/2306.00926.
    """
    optimizer = optax.adam(rate)
    # Adam scales each coordinate by itself: the sum of the losses trains each client alone.
    fitted, _ = minimize(
        lambda coefficients, key: jnp.sum(losses(basis.expand(coefficients))),
        coefficients,
        optimizer,
        optimizer.init(coefficients),
        jax.random.split(jax.random.key(0), steps),
    )
    return fitted


def ridge(conditions: jax.Array, targets: jax.Array, penalty: float) -> Affine:
    """Returns the ridge regression of targets on conditions, whose intercept is not penalized.

        min_{A, b} 1/N sum_n |t_n - s_n A - b|^2 + penalty |A|^2

    Args:
      conditions: `[N, C]`.
      targets: `[N, K]`.
      penalty: The weight of the squared entries of the kernel, above 0.
    """
    center, mean = jnp.mean(conditions, axis=0), jnp.mean(targets, axis=0)
    x = conditions - center
    gram = x.T @ x / len(x) + penalty * jnp.eye(x.shape[1], dtype=x.dtype)
    kernel = linear_algebra.solve(gram, x.T @ (targets - mean) / len(x))
    return Affine(kernel, mean - center @ kernel)
