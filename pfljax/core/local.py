"""Local training: what one client does with its own examples.

Loops have a dynamic number of steps, `ceil(size / batch_size)` for each client, so
that a client costs what its own examples cost, also beside larger ones under `vmap`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax.core import partition
from pfljax.core.types import Batch, ClientData, Context, Model, Path

PyTree = Any
Objective = Callable[[Model, Batch, jax.Array], jax.Array]  # (model, batch, key) -> []


class LocalTraining(NamedTuple):
    """How a client trains.

    Attributes:
      optimizer: any optax optimizer; it starts anew in each round.
      batch_size: examples in a step.
      epochs: passes over the client's examples in a round.
      drop_remainder: leave out the last batch of an epoch where it is not full. Otherwise it
        is masked, and its loss is the mean over the examples it has.
      shuffle: a new order in every epoch; False keeps the stored order.
      schedule: `round -> []`, multiplies the optimizer's updates; None leaves them.
    """

    optimizer: optax.GradientTransformation
    batch_size: int = 10
    epochs: int = 1
    drop_remainder: bool = False
    shuffle: bool = True
    schedule: Callable[[jax.Array], jax.Array] | None = None


class Trained(NamedTuple):
    """What local training returns.

    Attributes:
      model: the trained model, frozen arrays included.
      metrics: `{'loss': []}`, the mean objective over the steps.
      optimizer_state: the optimizer's state after the last step.
    """

    model: Model
    metrics: dict[str, jax.Array]
    optimizer_state: PyTree


def steps_per_epoch(size: jax.Array, local: LocalTraining) -> jax.Array:
    """Returns `[]` int32, the steps of one epoch of a client with `size` `[]` examples."""
    rounded = size if local.drop_remainder else size + local.batch_size - 1
    return rounded // local.batch_size


def for_each_batch(
    step: Callable[[PyTree, Batch, jax.Array], PyTree],
    carry: PyTree,
    data: ClientData,
    context: Context,
    local: LocalTraining,
    *,
    epochs: int | None = None,
) -> PyTree:
    """Runs `carry = step(carry, batch, key)` over a client's batches, epoch after epoch.

    Args:
      step: one step of the method; `key` is a typed key of the step's own.
      carry: what the steps hand on; keeps its structure, shapes and dtypes.
      data: the client's examples.
      context: its key decides the order of the examples and the steps' keys.
      local: batch size, epochs, order, last batch.
      epochs: replaces `local.epochs` (static).

    Returns:
      The carry after the last step; the one given where the client has no batch.
    """
    batch_size = local.batch_size
    steps = steps_per_epoch(data.size, local)
    positions = jnp.arange(-(-data.max_size // batch_size) * batch_size, dtype=jnp.int32)
    order_key, step_key = jax.random.split(context.key)

    def epoch(index, carry):
        if local.shuffle:
            # Examples get a random rank and padding the last ones: the first `size` entries
            # of the sorted positions are then a uniformly random order of the client's rows.
            bits = jax.random.bits(jax.random.fold_in(order_key, index), positions.shape)
            last = jnp.array(jnp.iinfo(bits.dtype).max, bits.dtype)
            rank = jnp.where(positions < data.size, bits, last)
            _, order = jax.lax.sort((rank, positions), num_keys=1, is_stable=True)
        else:
            order = positions

        def body(number, carry):
            indices = jax.lax.dynamic_slice(order, (number * batch_size,), (batch_size,))
            key = jax.random.fold_in(step_key, index * steps + number)
            return step(carry, data.take(indices), key)

        return jax.lax.fori_loop(0, steps, body, carry)

    return jax.lax.fori_loop(0, local.epochs if epochs is None else epochs, epoch, carry)


def train(
    objective: Objective,
    model: Model,
    data: ClientData,
    context: Context,
    local: LocalTraining,
    *,
    optimizer: optax.GradientTransformation | None = None,
    epochs: int | None = None,
    trainable: Callable[[Path], bool] | None = None,
) -> Trained:
    """Minimizes an objective over a client's examples, from `model` on.

    At every step, with batch `b` and the optimizer's update `u`:

        theta <- theta + schedule(round) * u(grad objective(theta, b))

    Args:
      objective: `(model, batch, key) -> []`; `Task.loss`, or that plus a penalty.
      model: nested dict of arrays to start from.
      data: the client's examples.
      context: its key decides everything random.
      local: optimizer, batch size, epochs.
      optimizer: replaces `local.optimizer`.
      epochs: replaces `local.epochs`.
      trainable: `path -> bool`, which arrays move; None moves all of them. No gradient is
        computed for the others.

    Returns:
      The trained model, `{'loss': []}`, and the optimizer's last state.
    """
    optimizer = local.optimizer if optimizer is None else optimizer
    moving, frozen = (model, {}) if trainable is None else partition.split(model, trainable)
    factor = None if local.schedule is None else local.schedule(context.round)

    def step(carry, batch, key):
        moving, state, loss_sum, count = carry
        loss, gradient = jax.value_and_grad(
            lambda part: objective(partition.join(part, frozen), batch, key)
        )(moving)
        updates, state = optimizer.update(gradient, state, moving)
        if factor is not None:
            updates = optax.tree.scale(factor, updates)
        moving = optax.apply_updates(moving, updates)
        return moving, state, loss_sum + loss, count + 1

    zero = jnp.zeros((), jnp.result_type(float))
    carry = (moving, optimizer.init(moving), zero, jnp.zeros((), jnp.int32))
    moving, state, loss_sum, count = for_each_batch(
        step, carry, data, context, local, epochs=epochs
    )
    metrics = {"loss": loss_sum / jnp.maximum(count, 1)}
    return Trained(partition.join(moving, frozen), metrics, state)
