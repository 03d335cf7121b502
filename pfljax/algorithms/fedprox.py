"""FedProx: FedAvg with a proximal term to the server's model.

Server: the model `w` and the state of its optimizer. Client: nothing.
Down: `w`. Up: `theta_k - w`, weighted by examples (`sum`).
Cost per client and round: one local training.

References:
  Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous
  Networks", 2020, https://arxiv.org/abs/1812.06127.
"""

from __future__ import annotations

from typing import Annotated

import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging


@checked
def fedprox(
    task: core.Task,
    local: core.LocalTraining,
    *,
    mu: Annotated[float, core.at_least(0)] = 0.1,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging with a proximal term.

        theta_k = local training from w on L_k(theta) + mu/2 ||theta - w||^2;   w as in FedAvg

    Args:
      task: The model and its loss.
      local: The clients' local training.
      mu: Weight of the proximal term, 0.001 to 1; 0 is FedAvg.
      server_optimizer: As in FedAvg.

    Returns:
      The method; its server state is FedAvg's.

    Notes:
      The paper lets a slow client stop early (gamma-inexactness); here every client of the
      cohort runs all its epochs. The reported loss is `L_k` without the proximal term.
    """

    def client_update(server, client, data, context):
        pulled = core.pulled_towards(task.loss, server.params, mu)
        trained = core.descend(pulled, server.params, (), data, context, local)
        change = tree.subtract(trained.params, server.params)
        return core.ClientOutput(
            state=client, sum=core.weighted(change, data.size), metrics=trained.metrics
        )

    average = fedavg(task, local, server_optimizer=server_optimizer)
    return average._replace(client_update=client_update)
