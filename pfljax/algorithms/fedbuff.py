"""FedBuff: asynchronous averaging; the server moves when a buffer of updates is full.

Server: the model `w`, the state of its optimizer, and earlier versions of both. Client: nothing.
Down: `w` of an earlier version. Up: the discounted `theta_k - w`, with uniform weights (`sum`).
Cost per client and round: one local training.

References:
  Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered
  Asynchronous Aggregation", 2022, https://arxiv.org/abs/2106.06639.
"""

from __future__ import annotations

from typing import Annotated

import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, staleness


@checked
def fedbuff(
    task: core.Task,
    local: core.LocalTraining,
    *,
    delay: Annotated[float, core.at_least(0)] = 2.0,
    max_staleness: Annotated[int, core.at_least(0)] = 10,
    exponent: Annotated[float, core.at_least(0)] = 0.5,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Averaging of the updates of clients that began at different versions of the model.

        theta_k = local training on L_k from w_v, the version that client k received
        Delta = mean over the cohort of (1 + t - v)^-exponent (theta_k - w_v)
        w_{t+1} = w_t + server_optimizer(-Delta)

    Args:
      task: The model and its loss.
      local: The clients' local training.
      delay: The mean time of a local training, in updates of the server, 0 to 10; 0 is FedAvg with
        uniform weights.
      max_staleness: The largest staleness `t - v`, of which the server keeps the versions.
      exponent: How fast the weight of late updates falls, 0 to 1 (paper: 1/2).
      server_optimizer: As in FedAvg; SGD's learning rate is the paper's server learning rate.

    Returns:
      The method; its server state is `staleness.WithVersions` of FedAvg's.

    Notes:
      A round is one flush of the buffer, and the cohort are the clients whose updates are in it, so
      that `config.cohort.size` is the paper's K (10). On the virtual clock of `ops/staleness.py`,
      `delay` times K clients train at any time. The time of a client's training is half-normal, as
      in the paper, but drawn once for each client, as slow devices stay slow. The paper draws the
      clients that start and here the engine draws those that arrive, uniformly in both cases; a
      client may so train twice at a time. A staleness above `max_staleness` is cut.
    """

    def client_update(server, client, data, context):
        trained = core.train(task.loss, server.params, data, context, local)
        change = tree.subtract(trained.params, server.params)
        return core.ClientOutput(
            state=client, sum=core.weighted(change, 1.0), metrics=trained.metrics
        )

    average = fedavg(task, local, server_optimizer=server_optimizer)
    return staleness.delayed(
        average._replace(client_update=client_update),
        staleness.clock(delay),
        staleness.polynomial(exponent),
        max_staleness,
    )
