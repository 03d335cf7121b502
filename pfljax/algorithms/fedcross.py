"""FedCross: several models train on different clients, and each is mixed with one other.

Server: the models `w_1 ... w_K`, and their assignment to the next cohort. Client: nothing.
Down: one of the models. Up: `theta_k` (`each`).
Cost per client and round: one local training; at the server a product of each pair of models.

References:
  Hu, Zhou, Yue, Ling, Huang, Li, Liu, Lian, Chen, "FedCross: Towards Accurate Federated Learning
  via Multi-Model Cross-Aggregation", 2024, https://arxiv.org/abs/2210.08285 (algorithm 1).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import split_params
from pfljax.ops import stacked
from pfljax.ops.stacked import cosines


class FedCrossServer(NamedTuple):
    """Attributes:
    models: `[K, ...]`, the models that clients train.
    assignment: `[K]` int32, the model of the client with each rank in the next cohort.
    """

    models: core.Params
    assignment: jax.Array


def assign(key: jax.Array, models: int) -> jax.Array:
    """Returns `[models]` int32, the models in random order."""
    return jax.random.permutation(key, models).astype(jnp.int32)


@checked
def fedcross(
    task: core.Task,
    local: core.LocalTraining,
    *,
    models: Annotated[int, core.at_least(1)] = 10,
    alpha: Annotated[float, core.between(0, 1)] = 0.99,
    in_order: bool = False,
) -> core.Algorithm:
    """Cross-aggregation of several models.

        v_i = local training from w_i on L_k, with k the client to which w_i is sent at random
        w_i <- alpha v_i + (1 - alpha) v_j
        j = the model least similar to v_i, or (i + round mod (K - 1) + 1) mod K
        the global model is mean_i w_i

    Args:
      task: The model and its loss.
      local: The clients' local training.
      models: Number of models K; in the paper it is the number of clients in a round. 1 is FedAvg.
      alpha: Weight of the model's own training, 0.5 to 0.999; 1 never mixes.
      in_order: Whether `j` follows the second rule; False uses the cosine similarity of all
        parameters.

    Returns:
      The method; a client deploys the global model.

    Notes:
      With more clients than models in a round, several clients train one model, and `v_i` is their
      mean, weighted by examples. With fewer, or if clients drop out, the models that no client has
      are mixed untrained. The paper's ways to speed up the first rounds are not included. Running
      statistics are mixed like parameters, and do not count in the similarity.
    """

    def init_server(population, key):
        start = stacked.repeat(task.init(key), models)
        return FedCrossServer(start, assign(jax.random.fold_in(key, 1), models))

    def download(server, context):
        return stacked.take(server.models, server.assignment[context.rank % models])

    def client_update(received, client, data, context):
        trained = core.train(task.loss, received, data, context, local)
        return core.ClientOutput(state=client, each=trained.params, metrics=trained.metrics)

    def trained_models(server, uploads, cohort):
        """The models `v_i`: means of what their clients uploaded."""
        trained_by = server.assignment[cohort.rank(cohort.ids) % models]
        trainer = jax.nn.one_hot(trained_by, models)  # [cohort, K]
        weights = trainer * cohort.sizes[:, None]  # 0 in a padding slot
        total = jnp.sum(weights, axis=0)
        weights = weights / jnp.where(total > 0, total, 1)

        def mean(old, new):
            rows = jnp.tensordot(weights.T.astype(new.dtype), new, 1)
            return jnp.where((total > 0).reshape(-1, *[1] * (new.ndim - 1)), rows, old)

        return jax.tree.map(mean, server.models, uploads.each)

    def server_update(server, uploads, cohort, context):
        trained = trained_models(server, uploads, cohort)
        number = jnp.arange(models)
        following = (number + context.round % max(models - 1, 1) + 1) % models
        parameters = split_params(trained, task.is_statistic)[1]
        likeness = jnp.where(jnp.eye(models, dtype=bool), jnp.inf, cosines(parameters))
        other = jnp.where(in_order, following, jnp.argmin(likeness, axis=1))
        gaps = tree.subtract(stacked.take(trained, other), trained)
        mixed = tree.add_scale(trained, 1 - alpha, gaps)
        return FedCrossServer(mixed, assign(context.key, models))

    def mean_model(server):
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), server.models)

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: (),
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: mean_model(server),
        global_params=mean_model,
        download=download,
    )
