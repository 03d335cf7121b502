"""Ditto: every client has a personalized model with a proximal term to the global one.

Server: FedAvg's. Client: its personalized model `v_k`.
Down: `w`. Up: `theta_k - w`, weighted by examples (`sum`); `v_k` never leaves the client.
Cost per client and round: one local training for `w`, `personal_epochs` for `v_k`.

References:
  Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization",
  2021, https://arxiv.org/abs/2012.04221 (algorithm 1 with FedAvg as the global solver).
"""

from __future__ import annotations

from typing import Annotated

import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.ops import averaging


@checked
def ditto(
    task: core.Task,
    local: core.LocalTraining,
    *,
    lam: Annotated[float, core.at_least(0)] = 0.1,
    personal_epochs: Annotated[int, core.at_least(1)] = 1,
    rate_factor: Annotated[float, core.above(0)] = 1.0,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Personalized models beside a global one.

        v_k <- local training from v_k on L_k(v) + lam/2 ||v - w||^2;   w as in FedAvg

    Args:
      task: The model and its loss.
      local: The clients' local training of both models.
      lam: Weight of the proximal term to the global model, 0.01 to 2; 0 is local training.
      personal_epochs: Number of epochs of the personalized model.
      rate_factor: Learning rate of the personalized model, as a factor of the clients' rate.
      server_optimizer: As in FedAvg.

    Returns:
      The method; a client's state is its personalized model, and the global model is FedAvg's.

    Notes:
      Both trainings start from the `w` received in this round, in either order. The reported
      personalized loss is `L_k` without the proximal term.
    """
    average = fedavg(task, local, server_optimizer=server_optimizer)
    own = local.scaled_by(rate_factor)

    def init_client(server, profile, key):
        return server.params

    def client_update(server, client, data, context):
        pulled = core.pulled_towards(task.loss, server.params, lam)
        personal = core.descend(
            pulled, client, (), data, context.child(0), own, epochs=personal_epochs
        )
        output = average.client_update(server, (), data, context.child(1))
        metrics = {**output.metrics, "personal_loss": personal.metrics["loss"]}
        return output._replace(state=personal.params, metrics=metrics)

    return average._replace(
        init_client=init_client,
        client_update=client_update,
        personalize=lambda server, client, data, context: client,
    )
