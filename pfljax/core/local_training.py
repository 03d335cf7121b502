"""Local training: optimization over the examples of one client.

Loops have a dynamic number of steps, `ceil(size / batch_size)` for each client and epoch, so that a
client costs only its own steps, also beside larger ones under `vmap`.
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
from pfljax.errors import UserError

PyTree = Any
Objective = Callable[[Params, Batch, jax.Array], jax.Array]  # (params, batch, key) -> []


class LocalTraining(NamedTuple):
    """The settings of local training.

    Attributes:
      optimizer: Any optax optimizer; it is initialized in each round.
      batch_size: Number of examples in a step.
      epochs: Number of passes over the client's examples in a round.
      num_steps: Number of steps in a round, in place of a number of epochs: for every client with
        a batch, whatever its size. It passes over its examples as often as that takes, and the
        last pass may be partial. 0 for `epochs`.
      drop_remainder: Whether to drop the last batch of an epoch if it is partial. Otherwise it is
        masked, and its loss is the mean over its examples.
      shrink_batch: Whether, with `drop_remainder`, a client with fewer examples than a batch trains
        on all of them as one batch, so that its batch size is `min(batch_size, size)`.
      shuffle: Whether every epoch has a new order; False keeps the stored order.
      schedule: `round -> []`, a factor of the optimizer's updates and of the rates of a method's
        other steps on models; None for none.
      observe: `Task.observe`, the running statistics after a step.
      step_schedule: `step -> []`, a factor of the optimizer's updates at a step, counted from 0 in
        each local training; it does not change a method's other steps. None for none.
      learning_rate: `[]`, the learning rate of `optimizer` before any schedule, for methods that
        use it in steps of their own (`rate`); None if it is not known.

    Example:
      >>> def halving(round): return 0.5**round
      >>> local = LocalTraining(optax.sgd(0.1), schedule=halving, learning_rate=0.1)
      >>> local.rate(1), local.one_pass().epochs
      (0.05, 1)
    """

    optimizer: optax.GradientTransformation
    batch_size: int = 10
    epochs: int = 1
    num_steps: int = 0
    drop_remainder: bool = False
    shrink_batch: bool = False
    shuffle: bool = True
    schedule: Callable[[jax.Array], jax.Array] | None = None
    observe: Callable[[Params, Batch], Params] | None = None
    step_schedule: Callable[[jax.Array], jax.Array] | None = None
    learning_rate: float | jax.Array | None = None

    def factor(self, round: jax.Array) -> jax.Array | None:
        """Returns the factor of the updates of a round; None for none."""
        return None if self.schedule is None else self.schedule(round)

    def scheduled(self, rate: float | jax.Array, round: jax.Array) -> float | jax.Array:
        """Returns a method's rate for steps on models, multiplied by the schedule."""
        factor = self.factor(round)
        return rate if factor is None else rate * factor

    def rate(self, round: jax.Array) -> float | jax.Array:
        """Returns the clients' learning rate in a round, including its schedule.

            eta(round) = learning_rate * schedule(round)

        Args:
          round: `[]` int32, the round.

        Raises:
          UserError: `learning_rate` is not set, or changes from step to step.
        """
        if self.step_schedule is not None:
            raise UserError(
                "The method uses the clients' learning rate of a round, but it has a schedule per "
                "step; set config.client_schedule.per='round'."
            )
        if self.learning_rate is None:
            raise UserError(
                "The method uses the clients' learning rate, which an optax optimizer does not "
                "tell; set LocalTraining.learning_rate to it."
            )
        return self.scheduled(self.learning_rate, round)

    def for_epochs(self, epochs: int) -> LocalTraining:
        """Returns settings for a number of passes over the examples."""
        return self._replace(epochs=epochs, num_steps=0)

    def scaled_by(self, factor: float | jax.Array) -> LocalTraining:
        """Returns settings whose updates, in every round, are `factor` times these."""
        return self._replace(schedule=lambda round: self.scheduled(factor, round))

    def one_pass(self) -> LocalTraining:
        """Returns settings for one pass in stored order, for sums over the examples."""
        return self.for_epochs(1)._replace(drop_remainder=False, shuffle=False)

    def of_models(
        self, *names: str, **others: Callable[[Params, Batch], Params] | None
    ) -> LocalTraining:
        """Returns the settings for a dict of models `{name: model}`.

        Args:
          *names: The models of the task to which `observe` belongs.
          **others: For each model of another task, the `Task.observe` of that task.
        """
        of_each = {**dict.fromkeys(names, self.observe), **others}
        watched = {name: observe for name, observe in of_each.items() if observe is not None}
        if not watched:
            return self._replace(observe=None)

        def observe(models, batch):
            return {name: seen(models[name], batch) for name, seen in watched.items()}

        return self._replace(observe=observe)

    def separate_optimizer(self, *names: str) -> optax.GradientTransformation:
        """Returns an optimizer with its own state for each model of a dict `{name: model}`.

        Args:
          *names: The names of all models.
        """
        return optax.partition(dict.fromkeys(names, self.optimizer), {name: name for name in names})


class Trained(NamedTuple):
    """The result of local training.

    Attributes:
      params: The trained params, including frozen arrays.
      metrics: `{'loss': Weighted}`, the mean objective over the steps, with weight 0 if there were
        none.
      optimizer_state: The state of the optimizer after the last step.
      carry: The carry of the update rule after the last step, see `descend`.
    """

    params: Params
    metrics: dict[str, Weighted]
    optimizer_state: PyTree
    carry: PyTree = ()


def steps_per_epoch(size: jax.Array, local: LocalTraining) -> jax.Array:
    """Returns `[]` int32, the number of steps per epoch for a client of `size` `[]` examples."""
    rounded = size if local.drop_remainder else size + local.batch_size - 1
    steps = rounded // local.batch_size
    if local.drop_remainder and local.shrink_batch:
        steps = jnp.where(size > 0, jnp.maximum(steps, 1), 0)
    return steps


def steps_per_round(size: jax.Array, local: LocalTraining) -> jax.Array:
    """Returns `[]` int32, the number of steps per round for a client of `size` `[]` examples."""
    per_epoch = steps_per_epoch(size, local)
    if local.num_steps:
        return jnp.where(per_epoch > 0, local.num_steps, 0)
    return local.epochs * per_epoch


def for_each_batch(
    step: Callable[[PyTree, Batch, jax.Array], PyTree],
    carry: PyTree,
    data: ClientData,
    context: Context,
    local: LocalTraining,
    *,
    epochs: int | jax.Array | None = None,
    steps: int | jax.Array | None = None,
    until: Callable[[PyTree, PyTree], jax.Array] | None = None,
) -> PyTree:
    """Runs `carry = step(carry, batch, key)` over a client's batches, epoch after epoch.

    A new epoch begins where the batches of one are used up, also with a number of steps.

    Args:
      step: One step of the method; `key` is a typed PRNG key for this step.
      carry: The initial carry; steps keep its structure, shapes and dtypes.
      data: The client's examples.
      context: The context, whose key determines the order of the examples and the steps' keys.
      local: The settings: batch size, epochs or steps, order, partial batches.
      epochs: Number of epochs, which replaces that of `local`, or its number of steps.
      steps: Number of steps, which replaces the number of epochs.
      until: `(carry before an epoch, carry after it) -> [] bool`, whether that epoch is the last;
        None for all epochs.

    Returns:
      The carry after the last step; the initial one if the client has no batch.
    """
    batch_size = local.batch_size
    per_epoch = steps_per_epoch(data.size, local)
    length = -(-data.max_size // batch_size) * batch_size
    if steps is None and epochs is None and local.num_steps:
        steps = steps_per_round(data.size, local)  # none for a client without a batch
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

    if until is None:
        return jax.lax.fori_loop(0, epochs, epoch, carry)

    def watched(state):
        index, carry, _ = state
        after = epoch(index, carry)
        return index + 1, after, until(carry, after)

    def goes_on(state):
        index, _, finished = state
        return (index < epochs) & ~finished

    state = jnp.zeros((), jnp.int32), carry, jnp.zeros((), bool)
    return jax.lax.while_loop(goes_on, watched, state)[1]


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
    steps: int | jax.Array | None = None,
    until: Callable[[PyTree, PyTree], jax.Array] | None = None,
) -> Trained:
    """Local training along an update rule, in place of the gradient of an objective.

        (loss, g, carry) <- gradient(theta, carry, batch, key)
        theta <- theta + schedule(round) * step_schedule(step) * u(g)

    Running statistics become the result of `local.observe` for the params before the step. Their
    part of `g` is set to zero, so that they are not changed by proximal terms and do not contribute
    to the norm by which an optimizer clips.

    Args:
      gradient: `(params, carry, batch, key) -> (loss [], gradient, carry)`, the update rule.
      params: The initial params.
      carry: The initial carry; the rule keeps its structure, shapes and dtypes.
      data: The client's examples.
      context: The context, whose key determines all randomness.
      local: The settings: optimizer, batch size, epochs.
      optimizer: Replaces `local.optimizer`.
      epochs: Number of epochs, which replaces that of `local`, or its number of steps.
      steps: Number of steps, which replaces the number of epochs, and may differ between clients.
      until: `(carry before an epoch, carry after it) -> [] bool`, whether that epoch is the last;
        None for all epochs.

    Returns:
      The trained params, `{'loss': Weighted}`, the optimizer's last state, and the last carry.
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
        if local.step_schedule is not None:
            updates = optax.tree.scale(local.step_schedule(count), updates)
        moved = optax.apply_updates(params, updates)
        if local.observe is not None:
            moved = replace_params(moved, seen)
        return moved, optimizer_state, carry, loss_sum + loss, count + 1

    # Of the state of a step, only the rule's carry is the method's.
    of_rule = None if until is None else lambda before, after: until(before[2], after[2])
    zero = jnp.zeros((), jnp.result_type(float))
    state = (params, optimizer.init(params), carry, zero, jnp.zeros((), jnp.int32))
    params, optimizer_state, carry, loss_sum, count = for_each_batch(
        step, state, data, context, local, epochs=epochs, steps=steps, until=of_rule
    )
    metrics = {"loss": weighted(loss_sum / jnp.maximum(count, 1), count > 0)}
    return Trained(params, metrics, optimizer_state, carry)


def pulled_towards(objective: Objective, anchor: Params, strength: float | jax.Array) -> Callable:
    """Returns the update rule of an objective with a proximal term, for `descend`.

        g = grad objective(theta) + strength (theta - anchor)

    This is the gradient of `objective + strength/2 ||theta - anchor||^2`. The returned loss is the
    objective only: the value of the proximal term is not needed, and would take another pass over
    both models in every step.

    Args:
      objective: `(params, batch, key) -> []`.
      anchor: The params towards which the term pulls.
      strength: The strength of the term.
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
    """Minimizes an objective over a client's examples, starting from `params`.

    At every step, with batch `b` and the optimizer's update `u`:

        theta <- theta + schedule(round) * step_schedule(step) * u(grad objective(theta, b))

    Args:
      objective: `(params, batch, key) -> []`; `Task.loss`, or that plus a penalty.
      params: The initial params.
      data: The client's examples.
      context: The context, whose key determines all randomness.
      local: The settings: optimizer, batch size, epochs.
      optimizer: Replaces `local.optimizer`.
      epochs: Number of epochs, which replaces that of `local`, or its number of steps.
      trainable: `path -> bool`, whether an array is trained, including running statistics; None
        trains all arrays. No gradient is computed for the others.

    Returns:
      The trained params, `{'loss': Weighted}`, and the optimizer's last state.
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
