"""MR-MTL: every client keeps one model, regularized towards the mean of the clients' models.

Server: the mean model `w` and the state of its optimizer. Client: its model `v_k`.
Down: `w`. Up: `v_k - w`, weighted by examples (`sum`).
Cost per client and round: one local training.

References:
  Liu, Hu, Wu, Smith, "On Privacy and Personalization in Cross-Silo Federated Learning", 2022,
  https://arxiv.org/abs/2206.07902.
  Wu, Li, Charles, Xiao, Liu, Xu, Smith, "Motley: Benchmarking Heterogeneity and Personalization in
  Federated Learning", 2022, https://arxiv.org/abs/2206.09262.
"""

from __future__ import annotations

from typing import Annotated

import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import replace_params, split_params
from pfljax.ops import averaging


@checked
def mr_mtl(
    task: core.Task,
    local: core.LocalTraining,
    *,
    lam: Annotated[float, core.at_least(0)] = 0.1,
    average_changes: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Mean-regularized multi-task learning.

        v_k <- local training from v_k on L_k(v) + lam/2 ||v - w||^2
        w <- w + server_optimizer(-sum_k n_k (v_k - w) / sum_k n_k)

    Args:
      task: The model and its loss.
      local: The clients' local training.
      lam: Weight of the distance to the mean model, 0.0001 to 3; 0 is local training.
      average_changes: Whether the server moves by the mean change of the clients' models in the
        round, as in Motley; False moves it to the mean of the cohort's models.
      server_optimizer: As in FedAvg.

    Returns:
      The method; a client's state is its personalized model, and the global model is `w`.

    Notes:
      With all clients in every round and the default server optimizer, both values of
      `average_changes` give the mean of all models, which is the paper's. With few clients in a
      round, changes add up: `w` leaves the range of the models, so that True suits full
      participation. The running statistics of `w` are always those of the mean of the cohort.
      Motley calls this method pFedMe, which is another one here. The authors' code initializes the
      clients' models differently; here they are initialized with `w`. The reported loss is `L_k`
      without the distance.
    """

    def client_update(server, client, data, context):
        pulled = core.pulled_towards(task.loss, server.params, lam)
        trained = core.descend(pulled, client, (), data, context, local)
        base = server.params
        if average_changes:
            base = replace_params(client, split_params(base, task.is_statistic)[0])
        change = tree.subtract(trained.params, base)
        return core.ClientOutput(
            state=trained.params, sum=core.weighted(change, data.size), metrics=trained.metrics
        )

    average = fedavg(task, local, server_optimizer=server_optimizer)
    return average._replace(
        init_client=lambda server, profile, key: server.params,
        client_update=client_update,
        personalize=lambda server, client, data, context: client,
    )
