"""FedMTL: multi-task learning of the clients' models, whose common mean regularizes them.

Server: the initial model, the mean of all clients' models, and their number. Client: its model
`theta_k`.
Down: the mean. Up: the change of `theta_k`, uniform weights (`sum`).
Cost per client and round: one local training.

References:
  Smith, Chiang, Sanjabi, Talwalkar, "Federated Multi-Task Learning", 2017,
  https://arxiv.org/abs/1705.10467 (equation 3 with the fixed relations of its section 3.1).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.algorithms.local import local as local_method
from pfljax.algorithms.registry import checked
from pfljax.core import tree


class FedMTLServer(NamedTuple):
    """Attributes:
    initial_params: The initial model of clients, which never changes.
    mean: The mean of the models of all `N` clients, of which absent ones keep theirs.
    num_clients: `[]`, `N`; constant.
    """

    initial_params: core.Params
    mean: core.Params
    num_clients: jax.Array


@checked
def fedmtl(
    task: core.Task,
    local: core.LocalTraining,
    *,
    lam: Annotated[float, core.at_least(0)] = 0.1,
    decay: Annotated[float, core.at_least(0)] = 0.0001,
) -> core.Algorithm:
    """Mean-regularized multi-task learning.

        minimize sum_k L_k(theta_k) + lam tr(W Omega W^T) + decay ||W||^2
        W = (theta_1 ... theta_N),   Omega = (I - 1 1^T / N)^2,
        so that tr(W Omega W^T) = sum_k ||theta_k - m||^2,   m = mean_j theta_j
        local steps along  grad L_k(theta) + 2 lam (theta - m) + 2 decay theta,
        where theta_k in m is theta, and the other models are those of the last round

    Args:
      task: The model and its loss.
      local: The clients' local training.
      lam: Weight of the distances to the mean, 0.001 to 1; 0, without decay, is local training.
      decay: Weight of the squared norm, 0 to 0.001.

    Returns:
      The method; a client's state is its model. There is no global model.

    Notes:
      The paper's solver MOCHA is a dual method for convex losses, and also learns Omega from the
      models; here local training replaces it, Omega is the fixed one, for which the server needs
      only sums, and `L_k` is a mean over examples. The paper chooses the weights by
      cross-validation. Absent clients count in the mean with their last models, and clients that
      never took part with the initial one. Running statistics of batch normalization stay with the
      clients. The reported loss is `L_k`.
    """

    def init_server(population, key):
        params = task.init(key)
        clients = jnp.asarray(population.num_clients, tree.dtype(params))
        return FedMTLServer(params, params, clients)

    def init_client(server, profile, key):
        return server.initial_params

    def client_update(server, client, data, context):
        # The gap to the mean, as a function of the model: the mean moves with a part of it.
        share = 1 / server.num_clients
        rest = tree.add_scale(server.mean, -share, client)

        def gradient(params, carry, batch, key):
            loss, slope = jax.value_and_grad(task.loss)(params, batch, key)
            slope = tree.add_scale(slope, 2 * (lam * (1 - share) + decay), params)
            return loss, tree.add_scale(slope, -2 * lam, rest), carry

        trained = core.descend(gradient, client, (), data, context, local)
        change = tree.subtract(trained.params, client)
        return core.ClientOutput(
            state=trained.params, sum=core.weighted(change, 1.0), metrics=trained.metrics
        )

    def server_update(server, uploads, cohort, context):
        part = cohort.count / cohort.num_clients
        return server._replace(mean=tree.add_scale(server.mean, part, core.mean(uploads.total)))

    return local_method(task, local)._replace(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
    )
