"""FedAsync: asynchronous mixing of the global model with the model of a client that arrives.

Server: the model `w` and earlier versions of it. Client: nothing.
Down: `w` of an earlier version. Up: the discounted model `theta_k` and its factor (`sum`).
Cost per client and round: one local training.

References:
  Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019,
  https://arxiv.org/abs/1903.03934.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, staleness


@checked
def fedasync(
    task: core.Task,
    local: core.LocalTraining,
    *,
    alpha: Annotated[float, core.above(0, 1)] = 0.6,
    mu: Annotated[float, core.at_least(0)] = 0.005,
    delay: Annotated[float, core.at_least(0)] = 2.0,
    max_staleness: Annotated[int, core.at_least(0)] = 10,
    exponent: Annotated[float, core.at_least(0)] = 0.5,
) -> core.Algorithm:
    """Mixes the models of late clients into the global model.

        theta_k = local training from w_v on L_k(theta) + mu/2 ||theta - w_v||^2
        s_k = (1 + t - v)^-exponent,   v the version that client k received
        w_{t+1} = w_t + mean over the cohort of alpha s_k (theta_k - w_t)

    Args:
      task: The model and its loss.
      local: The clients' local training.
      alpha: Weight of a client's model that is not late, 0.1 to 1 (paper: 0.6 and 0.9).
      mu: Weight of the proximal term, the paper's rho, 0 to 0.1 (paper: 0.005).
      delay: The mean time of a local training, in updates of the server, 0 to 10; with 0,
        `alpha=1` and `mu=0` it is FedAvg with uniform weights.
      max_staleness: The largest staleness `t - v`, of which the server keeps the versions.
      exponent: How fast the weight of late models falls, 0 to 1 (paper: 1/2); 0 for constant
        weights.

    Returns:
      The method; its server state is `staleness.WithVersions` of FedAvg's.

    Notes:
      In the paper one client arrives at a time, which is `config.cohort.size=1`; the models of a
      larger cohort arrive together and their mean is mixed. The paper draws the staleness of each
      update uniformly up to 4 or 16; here it follows from the virtual clock of `ops/staleness.py`
      on which some clients are slow. The paper's hinge function of the staleness is not included.
      Running statistics are mixed like parameters.
    """

    def client_update(server, client, data, context):
        pulled = core.pulled_towards(task.loss, server.params, mu)
        trained = core.descend(pulled, server.params, (), data, context, local)
        one = jnp.ones((), tree.dtype(trained.params))
        return core.ClientOutput(
            state=client, sum=core.weighted((trained.params, one), 1.0), metrics=trained.metrics
        )

    def server_update(server, uploads, cohort, context):
        params, factor = core.mean(uploads.total)
        mixed = jax.tree.map(
            lambda old, new: old + alpha * (new - factor.astype(old.dtype) * old),
            server.params,
            params,
        )
        return server._replace(params=mixed)

    average = fedavg(task, local, server_optimizer=averaging.PLAIN)
    return staleness.delayed(
        average._replace(client_update=client_update, server_update=server_update),
        staleness.clock(delay),
        staleness.polynomial(exponent),
        max_staleness,
    )
