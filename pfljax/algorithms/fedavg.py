"""FedAvg: one model for all clients, the average of their local trainings.

Server: the model `w` and the state of its optimizer. Client: nothing.
Down: `w`. Up: `theta_k - w`, weighted by examples (`sum`).
Cost per client and round: one local training.

Any optax optimizer can be used at the server: SGD with learning rate 1 is FedAvg, with momentum
FedAvgM, and Adam, Yogi and Adagrad are FedAdam, FedYogi and FedAdagrad.

References:
  McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep
  Networks from Decentralized Data", 2017, https://arxiv.org/abs/1602.05629.
  Reddi et al., "Adaptive Federated Optimization", 2021, https://arxiv.org/abs/2003.00295.
  Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
  Classification", 2019, https://arxiv.org/abs/1909.06335 (FedAvgM).
"""

from __future__ import annotations

import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging


@checked
def fedavg(
    task: core.Task,
    local: core.LocalTraining,
    *,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging.

        theta_k = local training from w on L_k;   Delta = sum_k n_k (theta_k - w) / sum_k n_k
        w <- w + server_optimizer(-Delta)

    Args:
      task: The model and its loss.
      local: The clients' local training.
      server_optimizer: The optimizer of the server, with `-Delta` as gradient.

    Returns:
      The method; its server state is an `averaging.ServerState`.

    Notes:
      Running statistics of batch normalization are averaged like parameters, with the same weights
      and never by the server optimizer.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task)

    def init_server(population, key):
        return averaging.init(task.init(key), server_optimizer)

    def init_client(server, profile, key):
        return ()

    def client_update(server, client, data, context):
        trained = core.train(task.loss, server.params, data, context, local)
        change = tree.subtract(trained.params, server.params)
        return core.ClientOutput(
            state=client, sum=core.weighted(change, data.size), metrics=trained.metrics
        )

    def server_update(server, uploads, cohort, context):
        return averaging.apply(server, uploads.total, server_optimizer)

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: server.params,
        global_params=lambda server: server.params,
    )
