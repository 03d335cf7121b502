"""FedNova: federated averaging of updates that are normalized by the clients' numbers of steps.

Server: the model `w` and the state of its optimizer. Client: nothing.
Down: `w`. Up: `(theta_k - w) / a_k` and `a_k`, weighted by examples (`sum`).
Cost per client and round: one local training.

References:
  Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous
  Federated Optimization", 2020, https://arxiv.org/abs/2007.07481.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging


def length_of_steps(
    data: core.ClientData, context: core.Context, local: core.LocalTraining, dtype: jnp.dtype
) -> jax.Array:
    """Returns `[]`, how far a local training moves an entry whose gradient is always one.

    For SGD this is the learning rate times the paper's `||a_k||_1`, the sum of the weights with
    which the gradients of all steps enter the update.

    Args:
      data: The client's examples, for the number of steps.
      context: The context, for the schedule of the learning rate.
      local: The settings of local training.
      dtype: The dtype of the model.
    """

    def constant(entry, carry, batch, key):
        return jnp.zeros((), dtype), jnp.ones((), dtype), carry

    alone = local._replace(observe=None, shuffle=False)
    entry = core.descend(constant, jnp.zeros((), dtype), (), data, context, alone).params
    return -entry


@checked
def fednova(
    task: core.Task,
    local: core.LocalTraining,
    *,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging without the bias towards clients that take more steps.

        theta_k = local training from w on L_k;   d_k = (theta_k - w) / a_k,   p_k = n_k / sum n_j
        Delta = (sum_k p_k a_k) (sum_k p_k d_k);   w <- w + server_optimizer(-Delta)
        a_k = sum over the steps of the weight of their gradient in theta_k - w

    Args:
      task: The model and its loss.
      local: The clients' local training.
      server_optimizer: As in FedAvg.

    Returns:
      The method; its server state is FedAvg's.

    Notes:
      The paper states `a_k` for SGD, also with momentum, with a proximal term or with a decaying
      rate. Here it is measured: the clients' optimizer takes the steps of the round along a
      constant gradient of one, from zero. For these optimizers that is the paper's value times the
      learning rate, which cancels in Delta; for others, such as Adam, it is a definition. Where
      all clients take equally many steps, the method is FedAvg. A client without a step has no
      direction and no weight. Running statistics are averaged as in FedAvg.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task)

    def client_update(server, client, data, context):
        trained = core.train(task.loss, server.params, data, context, local)
        change = tree.subtract(trained.params, server.params)
        length = length_of_steps(data, context, local, tree.dtype(change))
        moved = length > 0
        direction = averaging.scale_trainable(1 / jnp.where(moved, length, 1), change, task)
        return core.ClientOutput(
            state=client,
            sum=core.weighted((direction, length), jnp.where(moved, data.size, 0)),
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        direction, length = core.mean(uploads.total)
        change = averaging.scale_trainable(length, direction, task)
        return averaging.apply(server, core.weighted(change, 1.0), server_optimizer)

    average = fedavg(task, local, server_optimizer=server_optimizer)
    return average._replace(client_update=client_update, server_update=server_update)
