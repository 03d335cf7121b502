"""Self-FL: uncertainties within and between clients set their starts, steps and weights.

Server: the mean model `theta_0`, the model and the precision of each client, and the variance
between clients. Client: its model `theta_m`.
Down: the mean of the other clients' models, and its weight. Up: `theta_m` and its precision, which
the server needs individually (`each`).
Cost per client and round: at most one local training, and the variance of its iterates.

References:
  Chen, Ding, Tramel, Wu, Sahu, Avestimehr, Zhang, "Self-Aware Personalized Federated Learning",
  2022, https://arxiv.org/abs/2204.08069.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import split_params
from pfljax.ops import stacked, two_level


class SelfFLServer(NamedTuple):
    """Server state.

    Attributes:
      params: The mean model `theta_0`.
      models: The last model of each client, leaves `[N, ...]`; the initial one for a client that
        never took part.
      precisions: `[N]`, `1 / sigma_m^2`; 0 for a client that never took part.
      between: `[]`, the variance `sigma_0^2` between clients.
    """

    params: core.Params
    models: core.Params
    precisions: jax.Array
    between: jax.Array


class SelfFLDownload(NamedTuple):
    """What a client receives.

    Attributes:
      start: The weighted mean of the other clients' models.
      share: `[]`, the weight of `start` in the client's posterior mean.
    """

    start: core.Params
    share: jax.Array


@checked
def self_fl(
    task: core.Task,
    local: core.LocalTraining,
    *,
    between_factor: Annotated[float, core.at_least(0)] = 1.0,
    curvature: Annotated[float, core.above(0)] = 1.0,
) -> core.Algorithm:
    """Empirical Bayes for a two-level normal model of the clients' models.

        w_m = 1 / (sigma_0^2 + sigma_m^2);   v_m = sigma_0^2 + 1 / sum_{j != m} w_j
        theta_m <- l_m local steps on L_m from sum_{j != m} w_j theta_j / sum_{j != m} w_j
        l_m = ln(sigma_m^2 / (sigma_m^2 + v_m)) / ln(1 - curvature eta)
        sigma_m^2 <- variance of the iterates of these steps, a mean over weights
        sigma_0^2 <- between_factor times the variance of the theta_m, a mean over weights
        theta_0 <- sum_m w_m theta_m / sum_m w_m

    Args:
      task: The model and its loss.
      local: The clients' local training with the rate `eta`; `l_m` is at most its number of steps.
      between_factor: Factor of the variance between clients, 0.1 to 10; with 0 all clients are
        assumed to have one model, and a large one approaches local training.
      curvature: Curvature of the clients' losses, which determines how fast a local training
        forgets its start, 0.1 to 10; a larger one takes fewer steps.

    Returns:
      The method; a client's state is its model, and the global model is `theta_0`.

    Notes:
      With known variances and losses `||theta - x||^2 / 2` these are exact: `l_m` steps lead to the
      posterior mean. For networks the variances are surrogates, which no released code specifies:
      that within a client is the variance of its iterates, its start included
      (`ops.two_level.Iterates`), and that between clients is of the last models of all clients that
      took part so far, the noise within clients included. A client's first local training takes all
      steps, as nothing is known of its noise. Running statistics of batch normalization are
      averaged with the same weights, and count in no variance.
    """

    def trainable(params):
        return split_params(params, task.is_statistic)[1]

    def init_server(population, key):
        params = task.init(key)
        count, dtype = population.num_clients, tree.dtype(params)
        none = jnp.zeros(count, dtype)
        return SelfFLServer(params, stacked.repeat(params, count), none, jnp.zeros((), dtype))

    def download(server, context):
        precisions, between = server.precisions, server.between
        # Zeros for a held-out client, of which the server has no model.
        own = jax.nn.one_hot(context.client_id, precisions.shape[0], dtype=precisions.dtype)
        others = two_level.weights(precisions, between) * (1 - own)
        share = two_level.prior_share(jnp.sum(others), own @ precisions, between)
        return SelfFLDownload(two_level.mean(others, server.models, server.params), share)

    def client_update(received, client, data, context):
        rate = curvature * local.rate(context.round)
        steps = two_level.steps(received.share, rate, core.steps_per_round(data.size, local))

        def gradient(params, iterates, batch, key):
            loss, slope = jax.value_and_grad(task.loss)(params, batch, key)
            return loss, slope, iterates.add(trainable(params))

        start = received.start
        none = two_level.no_iterates(trainable(start))
        trained = core.descend(gradient, start, none, data, context, local, steps=steps)
        precision = trained.carry.add(trainable(trained.params)).precision()
        taken = core.weighted(steps.astype(precision.dtype), 1.0)
        return core.ClientOutput(
            state=trained.params,
            each=(trained.params, precision),
            metrics={**trained.metrics, "steps": taken},
        )

    def server_update(server, uploads, cohort, context):
        models, precisions = stacked.update_rows(
            (server.models, server.precisions), cohort, uploads.each
        )
        found = two_level.variance_between(trainable(models), precisions > 0)
        between = jnp.asarray(between_factor * found, precisions.dtype)
        weights = two_level.weights(precisions, between)
        mean = two_level.mean(weights, models, server.params)
        return SelfFLServer(mean, models, precisions, between)

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: server.params,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: client,
        global_params=lambda server: server.params,
        download=download,
    )
