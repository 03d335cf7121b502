"""FedNTD: the clients keep what the global model predicts for classes other than the true one.

Server: FedAvg's. Client: nothing.
Down: `w`. Up: `theta_k - w`, weighted by examples (`sum`).
Cost per client and round: one local training with two forward passes in a step.

References:
  Lee, Jeong, Shin, Bae, Yun, "Preservation of the Global Knowledge by Not-True Distillation in
  Federated Learning", 2022, https://arxiv.org/abs/2106.03097 (algorithm 1).
"""

from __future__ import annotations

from typing import Annotated

import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, losses
from pfljax.ops.distillation import not_true_divergence


@checked
def fedntd(
    task: core.Task,
    local: core.LocalTraining,
    *,
    beta: Annotated[float, core.at_least(0)] = 1.0,
    tau: Annotated[float, core.above(0)] = 1.0,
    weight_by_size: bool = True,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging with distillation of the not-true classes.

        theta_k = local training from w on L_k + beta mean_i KL(q_i(w) || q_i(theta))
        q_i = softmax over the classes c != y_i of f(x_i)_c / tau
        w <- w + server_optimizer(-sum_k n_k (theta_k - w) / sum_k n_k)

    Args:
      task: The model and its loss, for classification.
      local: The clients' local training.
      beta: Weight of the distillation, 0.1 to 10; 0 is FedAvg.
      tau: Temperature of the distillation, 1 to 5.
      weight_by_size: Whether to average with weights `n_k`, as in the authors' code; False averages
        uniformly.
      server_optimizer: As in FedAvg.

    Returns:
      The method; its states are FedAvg's.

    Notes:
      PFLlib multiplies the divergence by `tau^2`. With two classes there is one not-true class, and
      the term is zero. Batch normalization is in training mode in both models.
    """

    def client_update(server, client, data, context):
        def objective(params, batch, key):
            known, learned = (
                task.predict(model, batch.inputs, batch.mask, key)
                for model in (server.params, params)
            )
            lost = not_true_divergence(known / tau, learned / tau, batch.targets, batch.mask)
            return losses.of_outputs(task, learned, batch) + beta * lost

        trained = core.train(objective, server.params, data, context, local)
        change = tree.subtract(trained.params, server.params)
        total = core.weighted(change, data.weight(weight_by_size))
        return core.ClientOutput(state=client, sum=total, metrics=trained.metrics)

    average = fedavg(task, local, server_optimizer=server_optimizer)
    return average._replace(client_update=client_update)
