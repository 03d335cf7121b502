"""Gates: small networks that score the blocks of a model, of which the highest are kept.

Every array of a model is divided into blocks of consecutive entries. A gate reads the inputs of a
batch and gives each block a score in (0, 1); blocks are kept in the order of their scores, as many
as a budget of weights allows.

References:
  Chen, Yao, Gao, Ding, Li, "Efficient Personalized Federated Learning via Sparse Model-Adaptation",
  2023, https://arxiv.org/abs/2305.02776 (the gate and its blocks).
  Luo, Ren, Peng, Zhang, Li, "Differentiable Learning-to-Normalize via Switchable Normalization",
  2019, https://arxiv.org/abs/1806.10779.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.core.types import Params, Path, Task
from pfljax.ops import linear

_EPSILON = 1e-5
# Weights of a batch in the running statistics of the two normalizations.
_SWITCH_MOMENTUM, _NORM_MOMENTUM = 0.1, 0.1


class Part(NamedTuple):
    """An array of a model, as blocks.

    Attributes:
      path: The path of the array in the params.
      shape: Its shape.
      length: The number of entries of a block; the last block may have fewer.
      start: The index of the first block among the blocks of the model.
      count: The number of blocks.
      group: 0 for an array of a dense layer, and 1 for all others; each group has its own budget.
    """

    path: Path
    shape: tuple[int, ...]
    length: int
    start: int
    count: int
    group: int


class Blocks(NamedTuple):
    """The blocks of a model.

    Attributes:
      parts: The arrays, in the order in which inputs pass them, kernels before biases.
      sizes: `[L]` int32, the number of weights of each block.
      first: `[L]` bool, whether it is the first block of its array, which is always kept.
      group: `[L]` int32, its group.
    """

    parts: tuple[Part, ...]
    sizes: np.ndarray
    first: np.ndarray
    group: np.ndarray

    @property
    def num_blocks(self) -> int:
        """`L`, the number of blocks of the model."""
        return len(self.sizes)

    @property
    def num_weights(self) -> int:
        """The number of weights in all blocks."""
        return int(self.sizes.sum())


def divide(task: Task, count: int) -> Blocks:
    """Returns the blocks of a task's model, which its running statistics are no part of.

    The entries of an array are in the order (outputs, inputs, pixels), so that the blocks of a
    kernel are groups of outputs.

    Args:
      task: The task.
      count: The largest number of blocks of an array: blocks of `ceil(n / count)` of its entries.
    """
    shapes = jax.eval_shape(task.init, jax.eval_shape(jax.random.key, 0))
    dense = {path[:-1] for path, leaf in _leaves(shapes) if path[-1] == "kernel" and leaf.ndim == 2}
    order = {path: number for number, path in enumerate(task.layers)}
    trained = [(path, leaf) for path, leaf in _leaves(shapes) if not task.is_statistic(path)]
    trained.sort(key=lambda item: (order.get(item[0][:-1], len(order)), -item[1].ndim))
    parts, sizes = [], []
    for path, leaf in trained:
        entries = math.prod(leaf.shape)
        length = -(-entries // count)
        own = [min(length, entries - begin) for begin in range(0, entries, length)]
        group = int(path[:-1] not in dense)
        parts.append(Part(path, leaf.shape, length, len(sizes), len(own), group))
        sizes += own
    first = np.zeros(len(sizes), bool)
    first[[part.start for part in parts]] = True
    group = np.concatenate([np.full(part.count, part.group, np.int32) for part in parts])
    return Blocks(tuple(parts), np.array(sizes, np.int32), first, group)


def multiply(blocks: Blocks, factors: jax.Array, params: Params) -> Params:
    """Returns params with every block multiplied by its factor.

    Args:
      blocks: The blocks of the model.
      factors: `[L]`.
      params: The params; running statistics stay.
    """
    of_path = {part.path: part for part in blocks.parts}

    def one(path, leaf):
        part = of_path.get(tuple(name.key for name in path))
        return leaf if part is None else leaf * _spread(part, factors).astype(leaf.dtype)

    return jax.tree.map_with_path(one, params)


def _spread(part: Part, factors: jax.Array) -> jax.Array:
    """Returns the factors `[L]` of an array's blocks in the shape of the array."""
    *pixels, inputs, outputs = ((1, 1) + part.shape)[-max(2, len(part.shape)) :]
    own = jnp.repeat(factors[part.start : part.start + part.count], part.length)
    whole = own[: math.prod(part.shape)].reshape(outputs, inputs, *pixels)
    return jnp.moveaxis(whole, (1, 0), (-2, -1)).reshape(part.shape)


def budget(blocks: Blocks, density: float | jax.Array) -> jax.Array:
    """Returns `[2]` int32, how many weights besides the first blocks each group may keep.

    With the first blocks these are the fraction `density` of the weights of the group.
    """
    whole, others = _weights(blocks)
    # Of the weights to leave out, so that nothing is left out at density 1, whatever the rounding.
    return others - jnp.round((1 - density) * whole).astype(jnp.int32)


def budget_of_others(blocks: Blocks, fraction: float | jax.Array) -> jax.Array:
    """Returns `[2]` int32, a fraction of the weights of each group that are in no first block."""
    _, others = _weights(blocks)
    return jnp.round(fraction * others).astype(jnp.int32)


def _weights(blocks: Blocks) -> np.ndarray:
    """Returns `[2, 2]` int32: the weights of both groups, and those that are in no first block."""
    others = np.where(blocks.first, 0, blocks.sizes)
    return np.array(
        [
            [sizes[blocks.group == group].sum() for group in (0, 1)]
            for sizes in (blocks.sizes, others)
        ],
        np.int32,
    )


def keep(blocks: Blocks, scores: jax.Array, budget: jax.Array) -> jax.Array:
    """Returns `[L]` bool, the blocks to keep: a greedy solution of the knapsack of each group.

    The first block of each array is kept. The others follow by their score, rounded to tenths, and
    of equal ones the first; a block that exceeds what is left of the budget is skipped.

    Args:
      blocks: The blocks of the model.
      scores: `[L]`, the scores.
      budget: `[2]` int32, the number of weights besides the first blocks, for each group.
    """
    order = jnp.argsort(-jnp.round(10 * scores), stable=True)
    costs = jnp.asarray(np.where(blocks.first, 0, blocks.sizes))[order]
    first, group = jnp.asarray(blocks.first)[order], jnp.asarray(blocks.group)[order]

    def add(left, block):
        cost, is_first, group = block
        kept = is_first | (cost <= left[group])
        return left.at[group].add(jnp.where(kept, -cost, 0)), kept

    _, kept = jax.lax.scan(add, budget, (costs, first, group))
    return jnp.zeros(blocks.num_blocks, bool).at[order].set(kept)


def init(key: jax.Array, input_shape: tuple[int, ...], outputs: int, dtype: jnp.dtype) -> Params:
    """Returns a gate: switchable normalization, a linear layer, and batch normalization.

    Args:
      key: Typed PRNG key of the linear layer.
      input_shape: The shape of an example; its last axis are the channels if there are several.
      outputs: `L`, the number of scores.
      dtype: The dtype of the params.
    """
    channels = input_shape[-1] if len(input_shape) > 1 else 1
    zeros, ones = jnp.zeros(channels, dtype), jnp.ones(channels, dtype)
    switch = {"scale": ones, "bias": zeros, "running_mean": zeros, "running_var": zeros}
    switch |= {"mean_weight": jnp.ones(3, dtype), "var_weight": jnp.ones(3, dtype)}
    norm = linear.init_norm(outputs, dtype)
    norm |= {"running_mean": jnp.zeros(outputs, dtype), "running_var": jnp.ones(outputs, dtype)}
    layer = linear.init(key, math.prod(input_shape), outputs, dtype)
    return {"switch": switch, "linear": layer, "bn": norm}


def scores(gate: Params, inputs: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Returns `[B, L]`, the scores of all blocks by each example.

        sigmoid(BN(linear(SN(x))));   SN(x) = scale (x - sum_j p_j m_j) / sqrt(sum_j q_j v_j) + bias
        m, v: of an example's channel, of the example, of the channel in the batch
        p, q: softmax of three params

    Args:
      gate: The params of the gate.
      inputs: `[B, ...]`, standardized.
      mask: `[B]` bool, True for a real example, for training mode, in which the normalizations use
        the statistics of the batch; None uses the running statistics.
    """
    return jax.nn.sigmoid(_forward(gate, inputs, mask)[0])


def observe(gate: Params, inputs: jax.Array, mask: jax.Array) -> Params:
    """Returns the running statistics after a step in training mode, at their paths in the gate."""
    return _forward(gate, inputs, mask)[1]


def mean_scores(gate: Params, total: jax.Array, count: jax.Array) -> jax.Array:
    """Returns `[L]`, the mean of the scores of some examples; without any, the scores of the bias.

    Args:
      gate: The params of the gate.
      total: `[L]`, the sum of the scores.
      count: `[]`, the number of examples.
    """
    alone = jax.nn.sigmoid(gate["bn"]["bias"])
    return jnp.where(count > 0, total / jnp.maximum(count, 1), alone)


def _forward(gate, inputs, mask):
    """Returns the logits `[B, L]` and, in training mode, the next running statistics."""
    switch, norm = gate["switch"], gate["bn"]
    channels = switch["scale"].shape[0]
    x = inputs.reshape(inputs.shape[0], -1, channels)
    mean = jnp.mean(x, axis=1)
    var = jnp.sum((x - mean[:, None]) ** 2, axis=1) / max(x.shape[1] - 1, 1)
    # The variance over several channels, or examples, is the mean variance and that of the means.
    of_example = jnp.mean(mean, axis=1, keepdims=True)
    var_of_example = jnp.mean(var + (mean - of_example) ** 2, axis=1, keepdims=True)
    seen = {}
    if mask is None:
        of_batch, var_of_batch = switch["running_mean"], switch["running_var"]
    else:
        of_batch = _mean(mean, mask)
        var_of_batch = _mean(var + (mean - of_batch) ** 2, mask)
        seen["switch"] = _moved(switch, of_batch, var_of_batch, _SWITCH_MOMENTUM, jnp.any(mask))
    p, q = jax.nn.softmax(switch["mean_weight"]), jax.nn.softmax(switch["var_weight"])
    centre = p[0] * mean + p[1] * of_example + p[2] * of_batch
    spread = q[0] * var + q[1] * var_of_example + q[2] * var_of_batch
    normal = (x - centre[:, None]) * jax.lax.rsqrt(spread + _EPSILON)[:, None]
    z = linear.apply(
        gate["linear"], (normal * switch["scale"] + switch["bias"]).reshape(x.shape[0], -1)
    )
    if mask is None:
        centre, spread = norm["running_mean"], norm["running_var"]
    else:
        count = jnp.sum(mask)
        centre = _mean(z, mask)
        spread = _mean((z - centre) ** 2, mask)
        unbiased = spread * count / jnp.maximum(count - 1, 1)
        seen["bn"] = _moved(norm, centre, unbiased, _NORM_MOMENTUM, count > 0, count > 1)
    normal = (z - centre) * jax.lax.rsqrt(spread + _EPSILON)
    return normal * norm["scale"] + norm["bias"], seen


def _mean(rows, mask):
    """Returns the mean of the real rows of `[B, ...]`."""
    weight = mask.astype(rows.dtype)[:, None]
    return jnp.sum(rows * weight, axis=0) / jnp.maximum(jnp.sum(weight), 1)


def _moved(norm, mean, var, momentum, has_mean, has_var=None):
    """Returns the next running statistics; those that the batch does not define stay."""

    def one(running, batch, known):
        return jnp.where(known, (1 - momentum) * running + momentum * batch, running)

    has_var = has_mean if has_var is None else has_var
    return {
        "running_mean": one(norm["running_mean"], mean, has_mean),
        "running_var": one(norm["running_var"], var, has_var),
    }


def _leaves(params):
    """Returns `(path, leaf)` of each array of a nested dict."""
    found = jax.tree_util.tree_leaves_with_path(params)
    return [(tuple(name.key for name in path), leaf) for path, leaf in found]
