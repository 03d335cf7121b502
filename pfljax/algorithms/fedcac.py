"""FedCAC: a client's critical entries are shared with similar clients only, all others with all.

Server: FedAvg's, and the overlap above which clients form a group. Client: the mask of its critical
entries, and a model with their values.
Down: `w`, and after the round the mean model of the client's group. Up: `theta_k - w`, weighted by
examples (`sum`); `theta_k` and its mask of critical entries (`each`).
Cost per client and round: one local training; at the server a sum over the cohort for each client.

References:
  Wu, Liu, Niu, Zhu, Tang, "Bold but Cautious: Unlocking the Potential of Personalized Federated
  Learning through Cautiously Aggressive Collaboration", 2023, https://arxiv.org/abs/2309.11103.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import zero_params
from pfljax.ops import averaging, masks, stacked

# Overlaps that differ by less are equal: they are quotients of counts, rounded.
ROUNDING = 1e-6


class FedCacServer(NamedTuple):
    """Attributes:
    average: the model `w` and its optimizer's state.
    threshold: `[]`, the overlap from which on two clients work together.
    """

    average: averaging.ServerState
    threshold: jax.Array


class FedCacClient(NamedTuple):
    """Attributes:
    params: `u_k`, the mean of its group's models.
    critical: `M_k`, bool, where the client takes `u_k`; nowhere before its first round.
    """

    params: core.Params
    critical: core.PyTree


@checked
def fedcac(
    task: core.Task,
    local: core.LocalTraining,
    *,
    tau: Annotated[float, core.between(0, 1)] = 0.5,
    beta: Annotated[float, core.above(0)] = 100.0,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Collaboration by critical entries.

        theta_k = local training on L_k from v_k = M_k * u_k + (1 - M_k) * w;   w as in FedAvg
        M_k <- the tau largest entries of |(theta_k - v_k) * theta_k| in each array
        O_ij = 1 - |M_i - M_j|_1 / (2 |M_i|_1), of mean O and largest O_max over the cohort's pairs
        u_k <- mean of theta_k and all theta_j with O_kj >= O + (t / beta) (O_max - O)

    Args:
      task: The model and its loss.
      local: The clients' local training.
      tau: Fraction of the entries of an array that are critical, 0.1 to 0.9; 0 is FedAvg, and 1 is
        FedAvg with uniform weights.
      beta: The round `t`, counted from 1, in which only the closest clients still share critical
        entries, 40 to 200; later none does.
      server_optimizer: As in FedAvg.

    Returns:
      The method. A client deploys `v_k`; the global model is `w`.

    Notes:
      An entry that local training did not change is never critical. A bias right before batch
      normalization changes by rounding errors only, which determine its mask. Absent clients keep
      their `u_k` and mask. A held-out client belongs to no group: its critical entries are those
      that it trained itself. A client without a training step has no critical entries; it is
      excluded from means and maxima of overlaps, and from all groups but its own. Running
      statistics are never critical: they are those of the common model.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task)
    average = fedavg(task, local, server_optimizer=server_optimizer)

    def init_server(population, key):
        start = average.init_server(population, key)
        return FedCacServer(start, jnp.zeros((), jnp.float32))

    def init_client(server, profile, key):
        params = server.average.params
        return FedCacClient(params, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), params))

    def personalize(server, client, data, context):
        return jax.tree.map(jnp.where, client.critical, client.params, server.average.params)

    def client_update(server, client, data, context):
        start = personalize(server, client, data, context)
        trained = core.train(task.loss, start, data, context, local)
        critical = jax.tree.map(
            lambda end, begin: masks.largest(jnp.abs((end - begin) * end), tau),
            trained.params,
            start,
        )
        critical = zero_params(critical, task.is_statistic)
        change = tree.subtract(trained.params, server.average.params)
        return core.ClientOutput(
            state=FedCacClient(trained.params, critical),
            sum=core.weighted(change, data.size),
            each=FedCacClient(trained.params, critical),
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        overlap = masks.overlaps(uploads.each.critical, uploads.each.critical)
        present = (cohort.ids >= 0) & masks.any_entry(uploads.each.critical)
        pairs = present[:, None] & present & ~jnp.eye(present.shape[0], dtype=bool)
        middle = core.mean_over(overlap, pairs)
        largest_overlap = jnp.max(jnp.where(pairs, overlap, 0))
        progress = (context.round + 1) / beta
        threshold = middle + progress * (largest_overlap - middle)
        return FedCacServer(
            averaging.apply(server.average, uploads.total, server_optimizer),
            threshold.astype(server.threshold.dtype),
        )

    def exchange(server, client, data, uploads, cohort, member, context):
        own = jax.tree.map(lambda leaf: leaf[None], client.critical)
        close = masks.overlaps(own, uploads.each.critical)[0] >= server.threshold - ROUNDING
        present = (cohort.ids >= 0) & masks.any_entry(uploads.each.critical)
        group = close & present & masks.any_entry(own) | (jnp.arange(close.shape[0]) == member)
        return client._replace(params=stacked.mix(group / jnp.sum(group), uploads.each.params))

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        global_params=lambda server: server.average.params,
        exchange=exchange,
    )
