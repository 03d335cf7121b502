"""FedSelect: the entries that change most become personal, more of them from time to time.

Server: the model `w`. Client: its model `theta_k` after its last training, the mask of its
personalized entries, and an earlier `theta_k`, from which changes are measured.
Down: `w`. Up: `theta_k - w` and its weight in the common entries, 0 in the personalized ones
(`sum`).
Cost per client and round: two local trainings, one of the personalized entries and one of the
others.

References:
  Tamirisa, Xie, Bao, Zhou, Arel, Shamsian, "FedSelect: Personalized Federated Learning with
  Customized Selection of Parameters for Fine-Tuning", 2024, https://arxiv.org/abs/2404.02478.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import replace_params, split_params
from pfljax.ops import masks


class FedSelectServer(NamedTuple):
    """Attributes:
    params: the model `w`.
    """

    params: core.Params


class FedSelectClient(NamedTuple):
    """Private state of a client.

    Attributes:
      params: `theta_k`, as last trained.
      personal: `m_k`, bool, the entries that were personalized in that training.
      before: `s_k`, the model when the mask last grew; the initial one before.
      trainings: `[]` int32, the number of rounds in which the client has trained.
    """

    params: core.Params
    personal: core.PyTree
    before: core.Params
    trainings: jax.Array


@checked
def fedselect(
    task: core.Task,
    local: core.LocalTraining,
    *,
    growth: Annotated[float, core.between(0, 1)] = 0.25,
    target: Annotated[float, core.between(0, 1)] = 0.8,
    every: Annotated[int, core.at_least(1)] = 3,
    weight_by_size: bool = False,
    deploy_trained: bool = False,
) -> core.Algorithm:
    """Personalized entries, chosen by how much local training changes them.

        v_k = m_k theta_k + (1 - m_k) w
        m_k <- m_k and the fraction `growth` of the other entries of each array that has the largest
               |theta_k - s_k|;   s_k <- theta_k      (after every `every`-th training)
        theta_k <- local training from v_k, in turn an epoch of m_k and an epoch of the others
        w <- sum_k (1 - m_k) theta_k / sum_k (1 - m_k), entry by entry

    Args:
      task: The model and its loss.
      local: The clients' local training; each of its epochs is one of the personalized entries
        followed by one of the common entries. With a number of steps, so many of each.
      growth: Fraction of an array's common entries that become personal at a time, 0.05 to 0.5
        (paper: 0.25); 0 is FedAvg with uniform weights.
      target: Fraction of personalized entries beyond which an array's mask does not grow, 0.1 to 1.
      every: Number of a client's trainings between two growths, 1 to 10; the first is after
        `every + 1` trainings.
      weight_by_size: Whether to average with weights `n_k`; False averages uniformly.
      deploy_trained: Whether a client deploys `theta_k`, its model before the average, as the
        authors' code evaluates; False deploys `v_k`.

    Returns:
      The method; a client deploys `v_k`, and the global model is `w`.

    Notes:
      Biases and normalization layers are never personalized, as in the authors' code. An entry that
      becomes personal starts from `w`. The code counts rounds, in which all its clients take part;
      here it is a client's own trainings that count. An entry that all clients of the cohort
      personalized keeps its last `w`, where the code has zeros. An entry that did not change is
      never chosen: in the code, many equal changes make all of them personal. The optimizer's
      state lasts for the round, over all epochs.
    """

    def is_selectable(path):
        return path[-1] != "bias" and not task.is_norm(path)

    def init_client(server, profile, key):
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), server.params)
        return FedSelectClient(server.params, nothing, server.params, jnp.int32(0))

    def personalize(server, client, data, context):
        return jax.tree.map(
            lambda m, own, w: jnp.where(m | deploy_trained, own, w),
            *(client.personal, client.params, server.params),
        )

    def grow(client):
        """Returns the next mask and `s_k`, after the training that the state is from."""
        due = (client.trainings > 1) & ((client.trainings - 1) % every == 0)

        def grown(mask, end, begin):
            return mask | due & masks.grown(mask, jnp.abs(end - begin), growth, target)

        parts = (
            split_params(part, is_selectable)[0]
            for part in (client.personal, client.params, client.before)
        )
        personal = replace_params(client.personal, jax.tree.map(grown, *parts))
        return personal, tree.where(due, client.params, client.before)

    def client_update(server, client, data, context):
        start = jax.tree.map(jnp.where, client.personal, client.params, server.params)
        personal, before = grow(client)
        steps = core.steps_per_epoch(data.size, local)
        steps = jnp.minimum(steps, local.num_steps) if local.num_steps else steps
        twice = local._replace(epochs=2 * local.epochs, num_steps=2 * local.num_steps)
        optimizer = masks.alternating(local.optimizer, personal, steps)
        trained = core.train(task.loss, start, data, context, twice, optimizer=optimizer)
        weight = data.weight(weight_by_size)
        upload = jax.tree.map(
            lambda end, w, m: core.weighted(end - w, jnp.where(m, 0, weight)),
            *(trained.params, server.params, personal),
        )
        state = FedSelectClient(trained.params, personal, before, client.trainings + 1)
        return core.ClientOutput(state=state, sum=upload, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        change = jax.tree.map(
            core.mean, uploads.total, is_leaf=lambda node: isinstance(node, core.Weighted)
        )
        return FedSelectServer(tree.add(server.params, change))

    return core.Algorithm(
        init_server=lambda population, key: FedSelectServer(task.init(key)),
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        global_params=lambda server: server.params,
    )
