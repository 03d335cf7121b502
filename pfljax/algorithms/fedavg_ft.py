"""FedAvg with fine-tuning: the global model, trained further by each client.

Server: FedAvg's. Client: nothing. Down and up: FedAvg's.
Cost per client and round: one local training; per evaluation `fine_tuning_epochs` more.

The simplest personalization, and a strong baseline.

References:
  Yu, Bagdasaryan, Shmatikov, "Salvaging Federated Learning by Local Adaptation", 2020,
  https://arxiv.org/abs/2002.04758.
  Cheng, Chadha, Duchi, "Fine-tuning is Fine in Federated Learning", 2021,
  https://arxiv.org/abs/2108.07313.
"""

from __future__ import annotations

from typing import Annotated

import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.ops import averaging


@checked
def fedavg_ft(
    task: core.Task,
    local: core.LocalTraining,
    *,
    fine_tuning_epochs: Annotated[int, core.at_least(0)] = 1,
    rate_factor: Annotated[float, core.above(0)] = 1.0,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging, evaluated after fine-tuning.

        w as in FedAvg;   theta_k = local training from w on L_k, for evaluation only

    Args:
      task: The model and its loss.
      local: The clients' local training and fine-tuning.
      fine_tuning_epochs: Number of epochs of fine-tuning before an evaluation, 1 to 20.
      rate_factor: Learning rate of fine-tuning, as a factor of the clients' rate, 0.03 to 3.
      server_optimizer: As in FedAvg.

    Returns:
      The method; its global model is FedAvg's.
    """

    tuning = local.scaled_by(rate_factor)

    def personalize(server, client, data, context):
        trained = core.train(
            task.loss, server.params, data, context, tuning, epochs=fine_tuning_epochs
        )
        return trained.params

    average = fedavg(task, local, server_optimizer=server_optimizer)
    return average._replace(personalize=personalize)
