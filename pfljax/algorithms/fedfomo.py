"""FedFomo: every client weighs a few other clients' models by the gain from each.

Server: every client's last model, and the affinity matrix `P` of gains between clients.
Client: its model, and the one from which its last training started.
Down: `models - 1` of the others' models, chosen by `P`. Up: the client's model and its row of gains
(`each`).
Cost per client and round: a local training on the examples that are not held out, and
`models + 1` passes without gradients over those that are.

References:
  Zhang, Sapra, Fidler, Yeung, Alvarez, "Personalized Federated Learning with First Order Model
  Optimization", 2021, https://arxiv.org/abs/2012.08565.
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
from pfljax.ops.exploration import choose

# Added to distances, so that models that hardly differ have finite gains.
LEAST_DISTANCE = 1e-5


class FedFomoServer(NamedTuple):
    """Server state.

    Attributes:
      models: `[N, ...]`, each client's last uploaded model; the initial one before the first.
      uploaded: `[N]` bool, whether a client has uploaded a model.
      affinity: `[N, N]`, the paper's `P`; row k contains the gains of client k from the others.
      initial: The initial model of clients, which never changes.
    """

    models: core.Params
    uploaded: jax.Array
    affinity: jax.Array
    initial: core.Params


class FedFomoClient(NamedTuple):
    """Private state of a client.

    Attributes:
      params: `theta_k`, as last trained.
      before: `theta_k'`, the model from which that training started.
    """

    params: core.Params
    before: core.Params


@checked
def fedfomo(
    task: core.Task,
    local: core.LocalTraining,
    *,
    models: Annotated[int, core.at_least(1)] = 5,
    validation_share: Annotated[float, core.between(0, 0.9)] = 0.2,
    exploration: Annotated[float, core.between(0, 1)] = 0.3,
    exploration_decay: Annotated[float, core.between(0, 1)] = 0.05,
) -> core.Algorithm:
    """Personal mixtures of models by first-order gains.

        g_kj = (V_k(theta_k') - V_k(theta_j)) / ||theta_j - theta_k'||,   V_k the held-out loss
        theta_k' <- sum_j max(g_kj, 0) theta_j / sum_j max(g_kj, 0),   over the models j it has
        theta_k <- local training from theta_k' on the other examples;   P_kj <- P_kj + g_kj
        where no model gains anything, training continues from theta_k

    Args:
      task: The model and its loss.
      local: The clients' local training; without `shuffle` the last examples stored are held out.
      models: Number of models that a client weighs, including its own, 1 to 20 (paper: 5, 10); 1
        trains locally.
      validation_share: Fraction of the examples held out to weigh models, 0.1 to 0.3; 0 trains
        locally.
      exploration: Probability in the first round that a model is a random one instead of that with
        the largest affinity, drawn for each model, 0 to 1.
      exploration_decay: Decrease of this probability per round, 0 to 0.2; 0 explores forever.

    Returns:
      The method; a client deploys its `theta_k`. There is no global model.

    Notes:
      The client's own model is always among those weighed. A client holds out the same random
      examples in every round of a run; they depend on the seed. Ties of affinities are broken
      randomly. The paper deploys the mixture at the end of a round; here it starts the next round,
      and the mixture after training is deployed. The paper does not specify how exploration ends;
      rule and numbers are those of the authors' code, with six rounds of exploration. PFLlib
      never explores, holds out the last examples, and uses the mean of the batches' losses for
      `V_k`. Batch normalization uses running statistics in `V_k`, which evaluates models; they are
      mixed with the models, and excluded from the distance.
    """

    def init_server(population, key):
        params, clients = task.init(key), population.num_clients
        affinity = jnp.eye(clients, dtype=tree.dtype(params))
        models = stacked.repeat(params, clients)
        return FedFomoServer(models, jnp.zeros(clients, bool), affinity, params)

    def init_client(server, profile, key):
        return FedFomoClient(server.initial, server.initial)

    def download(server, context):
        """Returns `models - 1` models, whose they are, and False for initial, untrained ones."""
        own = jnp.arange(server.uploaded.shape[0]) == context.client_id
        affinity = own.astype(server.affinity.dtype) @ server.affinity  # zeros for the unseen
        usable, count = server.uploaded & ~own, min(models, own.shape[0]) - 1
        chance = exploration - exploration_decay * context.round  # negative later: never
        key = context.child(2).key
        chosen = choose(key, affinity, usable, count, chance)
        return stacked.take(server.models, chosen), chosen, usable[chosen]

    def parameters(models):
        return split_params(models, task.is_statistic)[1]

    def gains(before, candidates, data, context):
        """Returns `[models]`, the loss that each candidate saves per distance from `before`."""
        squared = stacked.squared_distances(parameters(candidates), parameters(before))
        everything = stacked.prepend(before, candidates)
        loss = stacked.mean_losses(task, everything, data, context, local, train=False)
        gain = (loss[0] - loss[1:]) / (jnp.sqrt(squared) + LEAST_DISTANCE)
        return jnp.where(squared > 0, gain, 0)  # the same model gains nothing

    def client_update(received, client, data, context):
        others, ids, usable = received
        if local.shuffle:  # in the same random order in every round
            data = data.shuffled(context.client_key)
        training, held_out = data.hold_out(validation_share)
        candidates = stacked.prepend(client.params, others)
        gain = gains(client.before, candidates, held_out, context.child(0))
        gain = jnp.where(jnp.append(True, usable), gain, 0)
        helpful = jnp.maximum(gain, 0)
        total = jnp.sum(helpful)
        shares = helpful / jnp.where(total > 0, total, 1)
        start = tree.where(total > 0, stacked.mix(shares, candidates), client.params)
        trained = core.train(task.loss, start, training, context.child(1), local)
        state = FedFomoClient(trained.params, start)
        each = (trained.params, gain, jnp.append(context.client_id, ids))
        return core.ClientOutput(state=state, each=each, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        trained, gain, givers = uploads.each
        models = stacked.update_rows(server.models, cohort, trained)
        uploaded = stacked.update_rows(server.uploaded, cohort, True)
        takers = stacked.scatter_indices(cohort)[:, None]
        affinity = server.affinity.at[takers, givers].add(gain, mode="drop")
        return server._replace(models=models, uploaded=uploaded, affinity=affinity)

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: client.params,
        download=download,
    )
