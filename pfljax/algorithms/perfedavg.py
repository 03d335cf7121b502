"""Per-FedAvg: a common model optimized for its performance after one local gradient step.

Server: FedAvg's. Client: nothing.
Down: `w`. Up: `theta_k - w`, with uniform weights (`sum`).
Cost per client and round: one local training in the first-order variant, four thirds of one in the
Hessian-free; per evaluation one epoch more.

References:
  Fallah, Mokhtari, Ozdaglar, "Personalized Federated Learning: A Meta-Learning Approach", 2020,
  https://arxiv.org/abs/2002.07948 (algorithm 1, with the FO and HF approximations).
"""

from __future__ import annotations

import functools
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import replace_params
from pfljax.errors import UserError
from pfljax.ops import averaging


def part(batch: core.Batch, index: int, parts: int) -> core.Batch:
    """Returns one of `parts` equal pieces of a batch, in rows; only the last is never empty.

    A partial batch is split by its real examples, which come first.
    """
    size = jnp.sum(batch.mask, dtype=jnp.int32)
    start, end = index * size // parts, (index + 1) * size // parts
    rows = start + jnp.arange(-(-batch.mask.shape[0] // parts), dtype=jnp.int32)
    inputs, targets = jax.tree.map(
        lambda leaf: jnp.take(leaf, rows, axis=0, mode="clip"), (batch.inputs, batch.targets)
    )
    return core.Batch(inputs, targets, rows < end)


@checked
def perfedavg(
    task: core.Task,
    local: core.LocalTraining,
    *,
    alpha: Annotated[float, core.at_least(0)] = 0.01,
    hessian_free: bool = False,
    delta: Annotated[float, core.above(0)] = 0.001,
    adaptation_steps: Annotated[int, core.at_least(0)] = 1,
    weight_by_size: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging of meta-gradients.

        v = g(theta - alpha g(theta; b1); b2)   for a batch in parts b1, b2; and if hessian_free
        v <- v - alpha (g(theta + delta v; b3) - g(theta - delta v; b3)) / (2 delta)
        theta <- theta - beta v,   beta the rate of local.optimizer;   w as in FedAvg
        theta_k = adaptation_steps times theta <- theta - alpha g(theta; b) from w, for evaluation

    Args:
      task: The model and its loss.
      local: The clients' local training; SGD's learning rate is the paper's `beta`. A batch holds
        all its parts, two of them or (hessian_free) three.
      alpha: Learning rate of the inner step and of the adaptation, 0.001 to 0.1; 0 is FedAvg on
        `b2`.
      hessian_free: Whether to add the Hessian term by finite differences on a third part; False
        omits it (first order).
      delta: Step size of the finite differences, 0.0001 to 0.01.
      adaptation_steps: Number of gradient steps of a client before an evaluation, 1 to 10, each on
        as many examples as an inner step sees; 0 evaluates the common model.
      weight_by_size: Whether to average with weights `n_k`; False averages uniformly, as in the
        paper.
      server_optimizer: As in FedAvg.

    Returns:
      The method; its server state is FedAvg's.

    Notes:
      The paper draws the parts independently; here they are pieces of one batch, so that an epoch
      uses each example once. A learning rate schedule also multiplies alpha, in training and in
      the adaptation. A single example is used for the outer gradient. PFLlib has the first-order
      variant, with weights `n_k`, beta equal to alpha and the epochs run twice in each round.
      Batch normalization is in training mode at every gradient, on the statistics of that part of
      the batch. Running statistics are updated at theta on the whole batch, and in the adaptation.
    """
    parts = 3 if hessian_free else 2
    if task.observe is not None and local.batch_size < 2 * parts:
        raise UserError(
            f"Per-FedAvg cuts a batch into {parts} parts, and batch normalization needs two "
            f"examples in each; batch_size is {local.batch_size}, take {2 * parts} or more."
        )

    def outer_gradient(rate, params, carry, batch, key):
        """Returns the loss after the inner step of this rate, and the meta-gradient."""
        inner_key, outer_key, hessian_key = jax.random.split(key, 3)

        def gradient(params, index, key):
            return jax.value_and_grad(task.loss)(params, part(batch, index, parts), key)

        inner = gradient(params, parts - 2, inner_key)[1]
        adapted = tree.subtract(params, tree.scale(rate, inner))
        loss, outer = gradient(adapted, parts - 1, outer_key)
        if hessian_free:
            reach = tree.scale(delta, outer)
            ahead = gradient(tree.add(params, reach), 0, hessian_key)[1]
            behind = gradient(tree.subtract(params, reach), 0, hessian_key)[1]
            curvature = tree.divide(tree.subtract(ahead, behind), 2 * delta)
            outer = tree.subtract(outer, tree.scale(rate, curvature))
        return loss, outer, carry

    def client_update(server, client, data, context):
        gradient = functools.partial(outer_gradient, local.scheduled(alpha, context.round))
        trained = core.descend(gradient, server.params, (), data, context, local)
        change = tree.subtract(trained.params, server.params)
        total = core.weighted(change, data.weight(weight_by_size))
        return core.ClientOutput(state=client, sum=total, metrics=trained.metrics)

    def personalize(server, client, data, context):
        rate = local.scheduled(alpha, context.round)
        few = local._replace(batch_size=-(-local.batch_size // parts), drop_remainder=False)

        def step(params, batch, key):
            inner = jax.grad(task.loss)(params, batch, key)
            seen = {} if local.observe is None else local.observe(params, batch)
            return replace_params(tree.subtract(params, tree.scale(rate, inner)), seen)

        return core.for_each_batch(step, server.params, data, context, few, steps=adaptation_steps)

    average = fedavg(task, local, server_optimizer=server_optimizer)
    return average._replace(client_update=client_update, personalize=personalize)
