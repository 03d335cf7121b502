"""q-FFL: a fairer distribution of losses, as clients with larger losses have more weight.

Server: the model `w` and the state of its optimizer. Client: nothing.
Down: `w`. Up: `theta_k - w` and the factor `h_k`, weighted by a power of the loss (`sum`).
Cost per client and round: one local training, and a forward pass over all examples.

References:
  Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", 2020,
  https://arxiv.org/abs/1905.10497 (q-FedAvg, algorithm 2).
"""

from __future__ import annotations

from typing import Annotated

import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import split_params
from pfljax.ops import averaging, full_batch

# Losses below are raised to it: a negative power of a loss of zero would be infinite.
LEAST_LOSS = 1e-10


@checked
def qffl(
    task: core.Task,
    local: core.LocalTraining,
    *,
    q: Annotated[float, core.at_least(0)] = 1.0,
    weight_by_size: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging on `sum_k F_k^(q+1) / (q+1)`.

        F_k = mean loss of w on all examples of client k;   theta_k = local training from w on L_k
        h_k = 1 + q ||theta_k - w||^2 / (eta F_k),   eta the clients' learning rate
        Delta = sum_k F_k^q (theta_k - w) / sum_k F_k^q h_k;   w <- w + server_optimizer(-Delta)

    Args:
      task: The model and its loss.
      local: The clients' local training; the paper's is SGD with the constant rate `1 / L`.
      q: Fairness, 0.001 to 15 (paper: tuned for each data set); 0 is FedAvg with the same weights,
        and large values approach the minimization of the largest loss.
      weight_by_size: Whether to multiply the weights by `n_k`, which gives the paper's objective
        `sum_k n_k F_k^(q+1)` for cohorts that are sampled uniformly; False weights clients by their
        losses only, as in the paper's rule.
      server_optimizer: As in FedAvg.

    Returns:
      The method; its server state is FedAvg's.

    Notes:
      This is the paper's rule `sum_k F_k^q L (w - theta_k) / sum_k (q F_k^(q-1) ||L (w -
      theta_k)||^2 + L F_k^q)` with numerator and denominator divided by L. The paper samples
      clients by their sizes; here the engine samples them uniformly. The norm is over trainable
      parameters. The loss is in evaluation mode; running statistics are averaged with the weights
      `F_k^q`.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task)

    def client_update(server, client, data, context):
        loss = full_batch.mean_loss(task, server.params, data, context.child(0), local)
        loss = jnp.maximum(loss, LEAST_LOSS)
        trained = core.train(task.loss, server.params, data, context.child(1), local)
        change = tree.subtract(trained.params, server.params)
        _, parameters = split_params(change, task.is_statistic)
        rate = local.rate(context.round)
        # Without learning rate there is no step, whatever the factor.
        scale = 1 / jnp.where(rate > 0, rate, 1)
        factor = 1 + q * scale * tree.squared_norm(parameters) / loss
        return core.ClientOutput(
            state=client,
            sum=core.weighted((change, factor), loss**q * data.weight(weight_by_size)),
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        change, factor = core.mean(uploads.total)
        # Without a weight the mean factor is 0, and so is the change.
        change = averaging.scale_trainable(1 / jnp.maximum(factor, 1), change, task)
        return averaging.apply(server, core.weighted(change, 1.0), server_optimizer)

    average = fedavg(task, local, server_optimizer=server_optimizer)
    return average._replace(client_update=client_update, server_update=server_update)
