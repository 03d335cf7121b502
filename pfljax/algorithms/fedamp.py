"""FedAMP: a client is pulled towards a mixture of models, in which models near its own weigh more.

Server: the initial model, which never changes. Client: its model `theta_k` and its mixture `u_k`.
Down: after the round, `u_k`. Up: `theta_k` (`each`).
Cost per client and round: one local training; at the server a sum over the cohort for each client.

References:
  Huang, Chu, Zhou, Wang, Liu, Pei, Zhang, "Personalized Cross-Silo Federated Learning on Non-IID
  Data", 2021, https://arxiv.org/abs/2007.03797 (algorithm 1).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax.numpy as jnp

from pfljax import core
from pfljax.algorithms.local import local as local_method
from pfljax.algorithms.registry import checked
from pfljax.core.params import split_params
from pfljax.ops import stacked


class FedAMPClient(NamedTuple):
    """Attributes:
    params: the model `theta_k`.
    mixture: `u_k`, towards which the next training is pulled.
    """

    params: core.Params
    mixture: core.Params


@checked
def fedamp(
    task: core.Task,
    local: core.LocalTraining,
    *,
    lam: Annotated[float, core.at_least(0)] = 0.1,
    alpha: Annotated[float, core.above(0)] = 1.0,
    sigma: Annotated[float, core.above(0)] = 1.0,
) -> core.Algorithm:
    """Attentive message passing between the clients' models.

        theta_k <- local training from theta_k on L_k(theta) + lam / (2 alpha) ||theta - u_k||^2
        a_kj = alpha A'(||theta_k - theta_j||^2),   A(x) = 1 - e^(-x / sigma),   for j != k
        u_k <- sum_j a_kj theta_j + (1 - sum_j a_kj) theta_k,   over the cohort

    Args:
      task: The model and its loss.
      local: The clients' local training.
      lam: Weight of the proximal term, 0.01 to 10; 0 is local training.
      alpha: Step size of the message passing, 0.01 to 10; it divides the proximal term.
      sigma: Scale of the squared distances between models that collaborate, 0.1 to 100; weights are
        at most `alpha / sigma`.

    Returns:
      The method; a client deploys `theta_k`. There is no global model.

    Notes:
      The paper chooses alpha such that `u_k` is a convex combination. Where the weights of the
      others exceed 1 in total, they are divided by their sum here, and `theta_k` has no weight. The
      paper sets the hyper-parameters for each data set, and all want to be tuned; `alpha` and
      `sigma` are PFLlib's, where `lam` has no effect, and the default of `lam` is ours. The variant
      for deep networks, HeurFedAMP, with cosine similarities, is not included. Absent clients keep
      their models and mixtures. Running statistics of batch normalization are excluded from the
      distance and the proximal term. The reported loss is `L_k`.
    """

    def init_client(server, profile, key):
        return FedAMPClient(server, server)

    def client_update(server, client, data, context):
        pulled = core.pulled_towards(task.loss, client.mixture, lam / alpha)
        trained = core.descend(pulled, client.params, (), data, context, local)
        state = client._replace(params=trained.params)
        return core.ClientOutput(state=state, each=trained.params, metrics=trained.metrics)

    def parameters(models):
        return split_params(models, task.is_statistic)[1]

    def exchange(server, client, data, uploads, cohort, member, context):
        own = parameters(client.params)
        squared = stacked.squared_distances(parameters(uploads.each), own)
        other = (cohort.ids >= 0) & (jnp.arange(squared.shape[0]) != member)
        weights = jnp.where(other, alpha / sigma * jnp.exp(-squared / sigma), 0)
        total = jnp.sum(weights)
        weights = weights / jnp.maximum(total, 1)
        weights = weights.at[member].set(jnp.maximum(1 - total, 0))
        return client._replace(mixture=stacked.mix(weights, uploads.each))

    return local_method(task, local)._replace(
        init_client=init_client,
        client_update=client_update,
        personalize=lambda server, client, data, context: client.params,
        exchange=exchange,
    )
