"""FedDyn: a linear term and a proximal term align the minima of the clients' losses with FedAvg's.

Server: the model `w`, and `h`, minus alpha times the mean drift of all clients. Client: `g_k`, an
estimate of the gradient of its loss at its last model.
Down: `w`. Up: `theta_k - w`, uniform weights (`sum`).
Cost per client and round: one local training.

References:
  Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, "Federated Learning Based on Dynamic
  Regularization", 2021, https://arxiv.org/abs/2111.04263 (algorithm 1).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import zero_params


class FedDynServer(NamedTuple):
    """Attributes:
    params: the model `w`.
    drift: `h`, of the model's shape.
    """

    params: core.Params
    drift: core.Params


@checked
def feddyn(
    task: core.Task,
    local: core.LocalTraining,
    *,
    alpha: Annotated[float, core.above(0)] = 0.01,
    squared: bool = True,
) -> core.Algorithm:
    """Dynamic regularization of the clients' losses.

        theta_k = local training from w on L_k(theta) - <g_k, theta> + alpha/2 ||theta - w||^2
        g_k <- g_k - alpha (theta_k - w);   h <- h - (alpha / N) sum_k (theta_k - w)
        w <- mean_k theta_k - h / alpha,   the sum and the mean over the cohort

    Args:
      task: The model and its loss.
      local: The clients' local training.
      alpha: Strength of the proximal term, 0.001 to 0.1.
      squared: Whether the proximal term is the squared distance; False uses
        `alpha/2 ||theta - w||`, as PFLlib.

    Returns:
      The method; a client's state is `g_k`, which begins at zero.

    Notes:
      The paper chooses alpha for each data set. In the authors' code a client's alpha is divided by
      the ratio of its number of examples to the mean one; here, as in the paper, all clients have
      the same. The distance without the square has the gradient zero at zero. Running statistics
      are averaged, and are zero in `g_k` and `h`. The reported loss is `L_k` without both terms.
    """

    def init_server(population, key):
        params = task.init(key)
        return FedDynServer(params, tree.zeros_like(params))

    def init_client(server, profile, key):
        return tree.zeros_like(server.params)

    def parameters(difference):
        """The difference of two models, with zeros for running statistics."""
        return zero_params(difference, task.is_statistic)

    def client_update(server, client, data, context):
        def gradient(params, carry, batch, key):
            loss, slope = jax.value_and_grad(task.loss)(params, batch, key)
            gap = parameters(tree.subtract(params, server.params))
            length = jnp.sqrt(tree.squared_norm(gap))
            strength = alpha * jnp.where(squared, 1, 0.5 / jnp.where(length > 0, length, 1))
            return loss, tree.add_scale(tree.subtract(slope, client), strength, gap), carry

        trained = core.descend(gradient, server.params, (), data, context, local)
        change = tree.subtract(trained.params, server.params)
        state = tree.add_scale(client, -alpha, parameters(change))
        return core.ClientOutput(
            state=state, sum=core.weighted(change, 1.0), metrics=trained.metrics
        )

    def server_update(server, uploads, cohort, context):
        change = core.mean(uploads.total)
        part = alpha * cohort.count / cohort.num_clients
        drift = tree.add_scale(server.drift, -part, parameters(change))
        mean = tree.add(server.params, change)
        return FedDynServer(tree.add_scale(mean, -1 / alpha, drift), drift)

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: server.params,
        global_params=lambda server: server.params,
    )
