"""IFCA, or HypCluster: a model for each cluster; every client trains the one that fits it best.

Server: the models `w_1 ... w_K` and the states of their optimizers. Client: nothing.
Down: the models. Up: `theta_k - w_c` for the chosen model `c`, with uniform weights (`sum`, K
messages of which one is not zero).
Cost per client and round: one local training, and a forward pass of K models over all examples; per
evaluation such a forward pass.

References:
  Ghosh, Chung, Yin, Ramchandran, "An Efficient Framework for Clustered Federated Learning", 2020,
  https://arxiv.org/abs/2006.04088 (IFCA, option II: model averaging).
  Mansour, Mohri, Ro, Suresh, "Three Approaches for Personalization with Applications to Federated
  Learning", 2020, https://arxiv.org/abs/2002.10619 (HypCluster).
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, stacked


@checked
def ifca(
    task: core.Task,
    local: core.LocalTraining,
    *,
    clusters: Annotated[int, core.at_least(1)] = 2,
    weight_by_size: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Clustering by the loss on a client's examples, and federated averaging in each cluster.

        c_k = argmin_c mean loss of w_c on all examples of client k
        theta_k = local training from w_c on L_k,  c = c_k
        Delta_c = mean of theta_k - w_c over the clients with c_k = c
        w_c <- w_c + server_optimizer(-Delta_c),   if there is such a client

    Args:
      task: The model and its loss.
      local: The clients' local training.
      clusters: Number of clusters, the paper's k, 2 to 4; 1 is FedAvg with the same weights.
      weight_by_size: Whether to average with weights `n_k`, as in HypCluster; False averages
        uniformly, as in IFCA.
      server_optimizer: As in FedAvg, for each cluster.

    Returns:
      The method; its server state is FedAvg's, with leaves `[K, ...]`. A client deploys the model
      with the lowest loss on its training examples. There is no global model.

    Notes:
      The models start from different random params. A cluster without a client in the cohort keeps
      its model and its optimizer's state. The message has the size of all models, so that the
      server needs only its sum. The paper's variant in which clusters share a body is not
      included. Losses are in evaluation mode. A held-out client chooses in the same way.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task)

    def init_server(population, key):
        models = jax.vmap(task.init)(jax.random.split(key, clusters))
        return averaging.init_stacked(models, server_optimizer)

    def choose(models, data, context):
        """Returns `[]` int32, the model with the lowest loss."""
        return jnp.argmin(stacked.mean_losses(task, models, data, context, local))

    def client_update(server, client, data, context):
        chosen = choose(server.params, data, context.child(0))
        start = stacked.take(server.params, chosen)
        trained = core.train(task.loss, start, data, context.child(1), local)
        change = tree.subtract(trained.params, start)
        weights = data.weight(weight_by_size) * (jnp.arange(clusters) == chosen)
        return core.ClientOutput(
            state=client,
            sum=averaging.weighted_for_each(change, weights),
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        return averaging.apply_stacked(server, uploads.total, server_optimizer)

    def personalize(server, client, data, context):
        return stacked.take(server.params, choose(server.params, data, context))

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: (),
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
    )
