"""LP-FT: the global model, personalized by training its head first and then all of it.

Server: FedAvg's. Client: nothing. Down and up: FedAvg's.
Cost per client and round: one local training; per evaluation `probing_epochs` of the head and
`fine_tuning_epochs` of the model.

References:
  Chen, Ghoukasian, Jin, Wang, Karimireddy, Li, "A Closer Look at Personalized Fine-Tuning in
  Heterogeneous Federated Learning", 2025, https://arxiv.org/abs/2511.12695.
  Kumar, Raghunathan, Jones, Ma, Liang, "Fine-Tuning can Distort Pretrained Features and
  Underperform Out-of-Distribution", 2022, https://arxiv.org/abs/2202.10054.
"""

from __future__ import annotations

from typing import Annotated

import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.ops import averaging


@checked
def lp_ft(
    task: core.Task,
    local: core.LocalTraining,
    *,
    probing_epochs: Annotated[int, core.at_least(0)] = 5,
    fine_tuning_epochs: Annotated[int, core.at_least(0)] = 10,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging, evaluated after linear probing and fine-tuning.

        w = (body, h) as in FedAvg
        h_k = probing_epochs of training on L_k(body, h) from h, the body fixed
        theta_k = fine_tuning_epochs of training on L_k from (body, h_k), for evaluation only

    Args:
      task: The model and its loss.
      local: The clients' local training, probing and fine-tuning.
      probing_epochs: Number of epochs of the head alone, 1 to 15; 0 is FedAvg with fine-tuning.
      fine_tuning_epochs: Number of epochs of the whole model afterwards, 0 to 15; 0 trains the
        head only.
      server_optimizer: As in FedAvg.

    Returns:
      The method; its global model is FedAvg's.

    Notes:
      The paper personalizes once, after the last round, in 15 epochs; that 5 of them are of the
      head is our choice. Here every evaluation does so. Batch normalization is in training mode in
      both phases, and a frozen body keeps its running statistics.
    """

    def personalize(server, client, data, context):
        probed = core.train(
            task.loss,
            server.params,
            data,
            context.child(0),
            local,
            epochs=probing_epochs,
            trainable=task.is_head,
        )
        tuned = core.train(
            task.loss, probed.params, data, context.child(1), local, epochs=fine_tuning_epochs
        )
        return tuned.params

    average = fedavg(task, local, server_optimizer=server_optimizer)
    return average._replace(personalize=personalize)
