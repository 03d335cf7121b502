"""CFL: federated averaging whose clients are split in two again and again, by their updates.

Server: the models of the clusters, the cluster of each client, and the number of clusters. Client:
nothing. Down: the model of its cluster. Up: `theta_k - w` (`each`).
Cost per client and round: one local training.

References:
  Sattler, Mueller, Samek, "Clustered Federated Learning: Model-Agnostic Distributed Multi-Task
  Optimization under Privacy Constraints", 2019, https://arxiv.org/abs/1910.01991.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import split_params
from pfljax.ops import clustering, stacked


class CflServer(NamedTuple):
    """Attributes:
    models: the models of the clusters, leaves `[M, ...]`.
    cluster: `[N]` int32, the cluster of each client.
    count: `[]` int32, the number of clusters.
    """

    models: core.Params
    cluster: jax.Array
    count: jax.Array


@checked
def cfl(
    task: core.Task,
    local: core.LocalTraining,
    *,
    eps1: Annotated[float, core.at_least(0)] = 0.4,
    eps2: Annotated[float, core.at_least(0)] = 1.6,
    warmup: Annotated[int, core.at_least(0)] = 20,
    max_clusters: Annotated[int, core.at_least(1)] = 8,
) -> core.Algorithm:
    """Federated averaging in clusters that are split where their clients disagree.

        theta_k = local training from w_c on L_k;   D_k = theta_k - w_c,   c the cluster of client k
        D_c = sum n_k D_k / sum n_k over the cluster;   w_c <- w_c + D_c
        split c where ||D_c|| < eps1 and max ||D_k|| > eps2, into the halves that minimize the
        largest cosine similarity of a D_k of one half and a D_k of the other

    Args:
      task: The model and its loss.
      local: The clients' local training.
      eps1: Length of the mean update below which a cluster has converged, 0.1 to 1; 0 is FedAvg.
      eps2: Length of the largest update above which its clients still disagree, 0.5 to 5.
      warmup: Number of rounds before the first split (authors' code: 20).
      max_clusters: Largest number of clusters, of which the server keeps the models; 1 is FedAvg.

    Returns:
      The method. A client deploys the model of its cluster. There is no global model.

    Notes:
      A cluster splits if it has more than two clients, all of which take part in the round, after
      its update. The halves are exact, by single linkage; the authors' code uses complete linkage,
      which may yield others. The paper bounds no number of clusters; a split beyond `max_clusters`
      is not made. Thresholds are those of the authors' code, for its model and data: choose them
      for yours. A held-out client deploys the model with the lowest loss on its training examples,
      in place of the paper's search along the tree of splits, which would need the updates of
      every split. Norms and similarities are those of trainable parameters.
    """

    def init_server(population, key):
        models = stacked.repeat(task.init(key), max_clusters)
        cluster = jnp.zeros(population.num_clients, jnp.int32)
        return CflServer(models, cluster, jnp.ones((), jnp.int32))

    def download(server, context):
        return stacked.take(server.models, server.cluster[context.client_id])

    def client_update(received, client, data, context):
        trained = core.train(task.loss, received, data, context, local)
        change = tree.subtract(trained.params, received)
        return core.ClientOutput(state=client, each=change, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        rows = jnp.arange(max_clusters, dtype=jnp.int32)
        present = cohort.ids >= 0
        cluster = server.cluster[jnp.maximum(cohort.ids, 0)]
        members = present & (cluster == rows[:, None])
        shares = core.shares((members * cohort.sizes).T, tree.dtype(server.models)).T
        mean = stacked.mix(shares, uploads.each)
        models = tree.add(server.models, mean)

        updates, means = (split_params(t, task.is_statistic)[1] for t in (uploads.each, mean))
        lengths, mean_lengths = (jnp.sqrt(jax.vmap(tree.squared_norm)(t)) for t in (updates, means))
        size = jnp.sum(server.cluster == rows[:, None], axis=1)
        splits = (jnp.sum(members, axis=1) == size) & (size > 2) & (context.round >= warmup)
        splits &= (mean_lengths < eps1) & (jnp.max(lengths * members, axis=1) > eps2)
        new = server.count + jnp.cumsum(splits, dtype=jnp.int32) - 1
        splits &= new < max_clusters

        def split():
            together = present[:, None] & present & (cluster[:, None] == cluster)
            similarity = stacked.cosines(updates)
            first = clustering.in_first_half(similarity, together, cohort.ids)
            leaves = splits[cluster] & ~first
            parents = rows.at[jnp.where(splits, new, max_clusters)].set(rows, mode="drop")
            moved = stacked.update_rows(
                server.cluster, cohort, jnp.where(leaves, new[cluster], cluster)
            )
            count = server.count + jnp.sum(splits, dtype=jnp.int32)
            return CflServer(stacked.take(models, parents), moved, count)

        return jax.lax.cond(jnp.any(splits), split, lambda: server._replace(models=models))

    def personalize(server, client, data, context):
        count = server.cluster.shape[0]
        held_out = context.client_id >= count
        # Other clients get no examples here, so that the losses cost nothing.
        judged = dataclasses.replace(data, size=jnp.where(held_out, data.size, 0))
        losses = stacked.mean_losses(task, server.models, judged, context, local)
        best = jnp.argmin(jnp.where(jnp.arange(max_clusters) < server.count, losses, jnp.inf))
        own = server.cluster[jnp.minimum(context.client_id, count - 1)]
        return stacked.take(server.models, jnp.where(held_out, best, own))

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: (),
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        download=download,
    )
