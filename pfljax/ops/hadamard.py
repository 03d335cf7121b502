"""Kernels as the Hadamard product of two low-rank kernels, each of which has two or three factors.

    dense:         W = (Y1 X1') * (Y2 X2' + offset),   X [outputs, R], Y [inputs, R]
    convolution:   the same with Y T_hw X' at each pixel (h, w),   T [height, width, R, R]

The rank of W is up to R^2, and that of a kernel of two factors with as many numbers 2 R. The params
of a model have a dict of the factors `x1`, `y1`, `x2`, `y2` (and `t1`, `t2`) in the place of a
kernel.

References:
  Hyeon-Woo, Ye-Bin, Oh, "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated
  Learning", 2022, https://arxiv.org/abs/2108.06098.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pfljax.core.local_training import LocalTraining
from pfljax.core.types import Params, Path, Task

Shape = tuple[int, ...]

_KERNEL, _FIRST, _SECOND = "kernel", ("x1", "y1", "t1"), ("x2", "y2", "t2")


class Factored(NamedTuple):
    """A task whose params have factors in the place of kernels.

    Attributes:
      task: The task.
      local: The local training of its params.
      compose: `params -> params` of the original task.
    """

    task: Task
    local: LocalTraining
    compose: Callable[[Params], Params]


def has_kernels(params: Params) -> bool:
    """Whether params, or their shapes, have a kernel that `factored` replaces."""
    found = []
    _map_kernels(lambda kernel, path: found.append(path), params)
    return bool(found)


def is_second(path: Path) -> bool:
    """Whether the array at `path` is a factor of the second kernel of a product."""
    return path[-2:-1] == (_KERNEL,) and path[-1] in _SECOND


def rank_between(shape: Shape, gamma: float) -> int:
    """Returns the rank R of factors, from the least with which a kernel may have full rank.

        R = (1 - gamma) R_min + gamma R_max,   rounded

    Args:
      shape: `[inputs, outputs]`, or `[height, width, inputs, outputs]`.
      gamma: From 0, for `R_min = ceil(sqrt(min(inputs, outputs)))`, to 1, for the largest `R_max`
        with which the factors have no more numbers than the kernel, and at least `R_min`.
    """
    gamma = float(gamma)  # determines shapes, so that it cannot be traced
    least = math.ceil(math.sqrt(min(shape[-2:])))
    most = max(least, math.floor(_rank_of_size(shape, math.prod(shape))))
    return round((1 - gamma) * least + gamma * most)


def rank_within(shape: Shape, fraction: float) -> int:
    """Returns the smallest rank of factors with a fraction of the kernel's numbers.

    It is at least the root of the larger of inputs and outputs, which may exceed the fraction.

    Args:
      shape: `[inputs, outputs]`, or `[height, width, inputs, outputs]`.
      fraction: From 0 to 1.
    """
    root = _rank_of_size(shape, float(fraction) * math.prod(shape))
    return max(math.ceil(math.sqrt(max(shape[-2:]))), math.ceil(root))


def size(shape: Shape, rank: int) -> int:
    """Returns the number of entries of the factors of a kernel.

    Args:
      shape: `[inputs, outputs]`, or `[height, width, inputs, outputs]`.
      rank: The rank R.
    """
    return 2 * (rank * sum(shape[-2:]) + rank**2 * _pixels(shape))


def _pixels(shape):
    """The number of pixels of a convolution, each of which has a matrix; 0 for a dense kernel."""
    return math.prod(shape[:-2]) if len(shape) > 2 else 0


def _rank_of_size(shape, numbers):
    """The root R of `size(shape, R) = numbers`."""
    pixels, sides = _pixels(shape), sum(shape[-2:])
    if not pixels:
        return numbers / (2 * sides)
    return (math.sqrt(sides**2 + 2 * pixels * numbers) - sides) / (2 * pixels)


def compose(factors: Params, offset: float) -> jax.Array:
    """Returns the kernel of the factors, `[inputs, outputs]` or `[height, width, inputs, outputs]`.

    Args:
      factors: The dict of the factors.
      offset: Added to the second kernel of the product.
    """

    def low_rank(number):
        x, y = factors[f"x{number}"], factors[f"y{number}"]
        if f"t{number}" not in factors:
            return y @ x.T
        return jnp.einsum("hwab,oa,ib->hwio", factors[f"t{number}"], x, y)

    return low_rank(1) * (low_rank(2) + offset)


def init(key: jax.Array, shape: Shape, rank: int, offset: float, dtype: jnp.dtype) -> Params:
    """Returns random factors, whose kernel has the mean square 2 / fan_in of He's initialization.

    All entries are normal with one variance: `q^2 + offset^2 q = 2 / fan_in`, with `q` the mean
    square of a low-rank kernel.

    Args:
      key: Typed PRNG key.
      shape: `[inputs, outputs]`, or `[height, width, inputs, outputs]`, of the kernel.
      rank: The rank R.
      offset: Added to the second kernel of the product.
      dtype: The dtype of the factors.
    """
    *pixels, inputs, outputs = shape
    square = 2 / math.prod(shape[:-1])
    of_each = (math.sqrt(offset**4 + 4 * square) - offset**2) / 2
    shapes = {"x": (outputs, rank), "y": (inputs, rank)}
    if pixels:
        shapes["t"] = (*pixels, rank, rank)
    terms, factors = rank ** (len(shapes) - 1), len(shapes)
    scale = (of_each / terms) ** (1 / (2 * factors))
    names = [f"{name}{number}" for number in (1, 2) for name in shapes]
    keys = jax.random.split(key, len(names))
    return {
        name: scale * jax.random.normal(own, shapes[name[0]], dtype)
        for name, own in zip(names, keys, strict=True)
    }


def factored(
    task: Task, local: LocalTraining, rank_of: Callable[[Shape], int], offset: float
) -> Factored:
    """Replaces the kernels of dense layers and convolutions by factors.

    Args:
      task: The task; arrays named 'kernel' with two or four axes are replaced.
      local: The local training of the task.
      rank_of: `shape of a kernel -> R`.
      offset: Added to the second kernel of each product.
    """

    def composed(params):
        return _map_factors(lambda factors: compose(factors, offset), params)

    def init_params(key):
        model_key, factors_key = jax.random.split(key)
        paths = []

        def replace(kernel, path):
            paths.append(path)
            own = jax.random.fold_in(factors_key, len(paths))
            return init(own, kernel.shape, rank_of(kernel.shape), offset, kernel.dtype)

        return _map_kernels(replace, task.init(model_key))

    def of_composed(function):
        def composing(params, *args, **kwargs):
            return function(composed(params), *args, **kwargs)

        return None if function is None else composing

    def of_kernels(rule):
        return lambda path: rule(path[:-1] if path[-1] in _FIRST + _SECOND else path)

    functions = ("losses", "loss", "predict", "features", "head", "class_features", "observe")
    functions += ("params_metrics",)
    rules = ("is_head", "is_norm", "is_adapter", "is_prompt", "is_statistic")
    changed = task._replace(
        init=init_params,
        **{name: of_composed(getattr(task, name)) for name in functions},
        **{name: of_kernels(getattr(task, name)) for name in rules},
    )
    return Factored(changed, local._replace(observe=of_composed(local.observe)), composed)


def _map_kernels(replace, params, path=()):
    """Returns params with `replace(kernel, path)` in the place of each kernel."""

    def one(name, child):
        if isinstance(child, dict):
            return _map_kernels(replace, child, (*path, name))
        is_kernel = name == _KERNEL and len(child.shape) in (2, 4)
        return replace(child, (*path, name)) if is_kernel else child

    return {name: one(name, child) for name, child in params.items()}


def _map_factors(replace, params):
    """Returns params with `replace(factors)` in the place of each dict of factors."""

    def one(name, child):
        if not isinstance(child, dict):
            return child
        return replace(child) if name == _KERNEL else _map_factors(replace, child)

    return {name: one(name, child) for name, child in params.items()}
