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

from pfljax.core import streams
from pfljax.core.client_data import Batch, ClientData, random_order
from pfljax.core.params import join_params, replace_params, split_params
from pfljax.core.tree import zeros_like
from pfljax.core.types import Context, Params, Path
from pfljax.core.uploads import Weighted, weighted

PyTree = Any
Objective = Callable[[Params, Batch, jax.Array], jax.Array]  # (params, batch, key) -> []


class LocalTraining(NamedTuple):
    """How a client trains.

    Attributes:
      optimizer: any optax optimizer; it starts anew in each round.
      batch_size: examples in a step.
      epochs: passes over the client's examples in a round.
      drop_remainder: leave out the last batch of an epoch where it is not full. Otherwise it
        is masked, and its loss is the mean over the examples it has.
      shuffle: a new order in every epoch; False keeps the stored order.
      schedule: `round -> []`, multiplies the optimizer's updates, and the rates of steps on models
        that a method takes besides; None leaves them.
      observe: `Task.observe`, the running statistics that a step leaves behind in the model.
    """

    optimizer: optax.GradientTransformation
    batch_size: int = 10
    epochs: int = 1
    drop_remainder: bool = False
    shuffle: bool = True
    schedule: Callable[[jax.Array], jax.Array] | None = None
    observe: Callable[[Params, Batch], Params] | None = None

    def factor(self, round: jax.Array) -> jax.Array | None:
        """What multiplies the updates of a round; None for nothing."""
        return None if self.schedule is None else self.schedule(round)

    def scheduled(self, rate: float | jax.Array, round: jax.Array) -> float | jax.Array:
        """A rate of the method's own for steps on models, which the schedule multiplies too."""
        factor = self.factor(round)
        return rate if factor is None else rate * factor

    def one_pass(self) -> LocalTraining:
        """Each example once, in stored order: for sums over them that need no gradient step."""
        return self._replace(epochs=1, drop_remainder=False, shuffle=False)

    def of_models(
        self, *names: str, **others: Callable[[Params, Batch], Params] | None
    ) -> LocalTraining:
        """The same for a dict of models `{name: model}`.

        Args:
          *names: the models of the task that `observe` belongs to.
          **others: for each model of another task, the `Task.observe` of that task.
        """
        of_each = {**dict.fromkeys(names, self.observe), **others}
        watched = {name: observe for name, observe in of_each.items() if observe is not None}
        if not watched:
            return self._replace(observe=None)

        def observe(models, batch):
            return {name: seen(models[name], batch) for name, seen in watched.items()}

        return self._replace(observe=observe)


class Trained(NamedTuple):
    """What local training returns.

    Attributes:
      params: the trained model, frozen arrays included.
      metrics: `{'loss': Weighted}`, the mean objective over the steps, of weight 0 where the client
        made none.
      optimizer_state: the optimizer's state after the last step.
      carry: what the method's own rule handed on, see `descend`.
    """

    params: Params
    metrics: dict[str, Weighted]
    optimizer_state: PyTree
    carry: PyTree = ()


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
    epochs: int | jax.Array | None = None,
    steps: int | jax.Array | None = None,
) -> PyTree:
    """Runs `carry = step(carry, batch, key)` over a client's batches, epoch after epoch.

    Args:
      step: one step of the method; `key` is a typed key of the step's own.
      carry: what the steps hand on; keeps its structure, shapes and dtypes.
      data: the client's examples.
      context: its key decides the order of the examples and the steps' keys.
      local: batch size, epochs, order, last batch.
      epochs: replaces `local.epochs`.
      steps: replaces both: as many batches, in as many epochs as that takes.

    Returns:
      The carry after the last step; the one given where the client has no batch.
    """
    batch_size = local.batch_size
    per_epoch = steps_per_epoch(data.size, local)
    length = -(-data.max_size // batch_size) * batch_size
    if steps is not None:
        epochs = -(-steps // jnp.maximum(per_epoch, 1))
    elif epochs is None:
        epochs = local.epochs

    def epoch(index, carry):
        if local.shuffle:
            # The client's rows in random order, then padding.
            order = random_order(
                streams.key_of(context.key, streams.ORDER, index), length, data.size
            )
        else:
            order = jnp.arange(length, dtype=jnp.int32)

        def body(number, carry):
            indices = jax.lax.dynamic_slice(order, (number * batch_size,), (batch_size,))
            key = streams.key_of(context.key, streams.STEP, index * per_epoch + number)
            return step(carry, data.take(indices), key)

        left = per_epoch if steps is None else jnp.minimum(per_epoch, steps - index * per_epoch)
        return jax.lax.fori_loop(0, left, body, carry)

    return jax.lax.fori_loop(0, epochs, epoch, carry)


def descend(
    gradient: Callable[[Params, PyTree, Batch, jax.Array], tuple[jax.Array, Params, PyTree]],
    params: Params,
    carry: PyTree,
    data: ClientData,
    context: Context,
    local: LocalTraining,
    *,
    optimizer: optax.GradientTransformation | None = None,
    epochs: int | None = None,
) -> Trained:
    """Local training by a rule of the method's own in place of the gradient of an objective.

        (loss, g, carry) <- gradient(theta, carry, batch, key)
        theta <- theta + schedule(round) * u(g)

    Running statistics become what `local.observe` returns for the model before the step. Their part
    of `g` is taken for zero, so that no rule, such as a pull towards a model, moves them, and none
    adds them to the norm by which an optimizer clips.

    Args:
      gradient: `(params, carry, batch, key) -> (loss [], gradient, carry)`.
      params: nested dict of arrays to start from.
      carry: what the rule hands on from step to step; keeps its structure, shapes and dtypes.
      data: the client's examples.
      context: its key decides everything random.
      local: optimizer, batch size, epochs.
      optimizer: replaces `local.optimizer`.
      epochs: replaces `local.epochs`.

    Returns:
      The trained model, `{'loss': Weighted}`, the optimizer's last state, and the last carry.
    """
    optimizer = local.optimizer if optimizer is None else optimizer
    factor = local.factor(context.round)

    def step(state, batch, key):
        params, optimizer_state, carry, loss_sum, count = state
        loss, direction, carry = gradient(params, carry, batch, key)
        if local.observe is not None:
            seen = local.observe(params, batch)
            direction = replace_params(direction, zeros_like(seen))
        updates, optimizer_state = optimizer.update(direction, optimizer_state, params)
        if factor is not None:
            updates = optax.tree.scale(factor, updates)
        moved = optax.apply_updates(params, updates)
        if local.observe is not None:
            moved = replace_params(moved, seen)
        return moved, optimizer_state, carry, loss_sum + loss, count + 1

    zero = jnp.zeros((), jnp.result_type(float))
    state = (params, optimizer.init(params), carry, zero, jnp.zeros((), jnp.int32))
    params, optimizer_state, carry, loss_sum, count = for_each_batch(
        step, state, data, context, local, epochs=epochs
    )
    metrics = {"loss": weighted(loss_sum / jnp.maximum(count, 1), count > 0)}
    return Trained(params, metrics, optimizer_state, carry)


def pulled_towards(objective: Objective, anchor: Params, strength: float | jax.Array) -> Callable:
    """Returns the rule of `descend` for an objective that also pulls towards a model.

        g = grad objective(theta) + strength (theta - anchor)

    That is the gradient of `objective + strength/2 ||theta - anchor||^2`. The loss that is returned
    is the objective alone: the value of the pull moves nothing, and would take another pass over
    both models in every step.

    Args:
      objective: `(params, batch, key) -> []`.
      anchor: of the model's structure.
      strength: of the pull.
    """

    def gradient(params, carry, batch, key):
        loss, slope = jax.value_and_grad(objective)(params, batch, key)
        pulled = jax.tree.map(
            lambda g, theta, held: g + jnp.asarray(strength, g.dtype) * (theta - held),
            slope,
            params,
            anchor,
        )
        return loss, pulled, carry

    return gradient


def train(
    objective: Objective,
    params: Params,
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
      objective: `(params, batch, key) -> []`; `Task.loss`, or that plus a penalty.
      params: nested dict of arrays to start from.
      data: the client's examples.
      context: its key decides everything random.
      local: optimizer, batch size, epochs.
      optimizer: replaces `local.optimizer`.
      epochs: replaces `local.epochs`.
      trainable: `path -> bool`, which arrays move, running statistics included; None moves all of
        them. No gradient is computed for the others.

    Returns:
      The trained model, `{'loss': Weighted}`, and the optimizer's last state.
    """
    moving, frozen = (params, {}) if trainable is None else split_params(params, trainable)

    def observe(moving, batch):
        seen = local.observe(join_params(moving, frozen), batch)
        return seen if trainable is None else split_params(seen, trainable)[0]

    def gradient(moving, carry, batch, key):
        loss, direction = jax.value_and_grad(
            lambda part: objective(join_params(part, frozen), batch, key)
        )(moving)
        return loss, direction, carry

    watchful = local if local.observe is None else local._replace(observe=observe)
    trained = descend(
        gradient, moving, (), data, context, watchful, optimizer=optimizer, epochs=epochs
    )
    return trained._replace(params=join_params(trained.params, frozen))
