"""FedFomo: every client weighs a few others' models by what each would gain it.

Server: every client's last model, and the affinity matrix `P`, which says whose models helped whom.
Client: its model, and the one from which its last training began.
Down: `models - 1` of the others' models, chosen by `P`. Up: the client's model and its row of gains
(`each`).
Cost per client and round: a local training on the examples that are not held out, and
`models + 1` passes without gradients over those that are.

References:
  Zhang, Sapra, Fidler, Yeung, Alvarez, "Personalized Federated Learning with First Order Model
  Optimization", 2021, https://arxiv.org/abs/2012.08565.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.core import tree

# Added to distances, so that models that hardly differ have finite gains.
LEAST_DISTANCE = 1e-5


class FedFomoServer(NamedTuple):
    """Attributes:
    models: `[N, ...]`, each client's last model; the initial one before it has uploaded any.
    uploaded: `[N]` bool, who has.
    affinity: `[N, N]`, the paper's `P`; row k says what the others' models were worth to client k.
    """

    models: core.Model
    uploaded: jax.Array
    affinity: jax.Array


class FedFomoClient(NamedTuple):
    """Attributes:
    model: `theta_k`, as the client trained it last.
    before: `theta_k'`, the model from which that training began.
    """

    model: core.Model
    before: core.Model


class Sent(NamedTuple):
    """Attributes:
    models: `[models - 1, ...]`.
    ids: `[models - 1]` int32, whose they are.
    usable: `[models - 1]` bool, False where there was no model to send.
    """

    models: core.Model
    ids: jax.Array
    usable: jax.Array


def fedfomo(
    task: core.Task,
    local: core.LocalTraining,
    *,
    models: int = 5,
    validation_share: float = 0.2,
    exploration: float = 0.3,
    exploration_decay: float = 0.05,
) -> core.Algorithm:
    """Personal mixtures of models by first-order gains.

        g_kj = (V_k(theta_k') - V_k(theta_j)) / ||theta_j - theta_k'||,   V_k the held-out loss
        theta_k' <- sum_j max(g_kj, 0) theta_j / sum_j max(g_kj, 0),   over the models j it has
        theta_k <- local training from theta_k' on the other examples;   P_kj <- P_kj + g_kj

    Where no model gains anything, training goes on from `theta_k`.

    Args:
      task: model and loss.
      local: how clients train; without `shuffle` the last examples stored are held out.
      models: how many a client weighs, its own included, 1 to 20; the paper takes 5 and 10. 1 is
        local training.
      validation_share: of a client's examples that are held out to weigh models, 0.1 to 0.3; 0 is
        local training.
      exploration: probability that a client is sent random models, and not those with the largest
        affinity, in the first round, 0 to 1.
      exploration_decay: the part of it lost with every round, 0 to 0.2.

    Returns:
      The method; a client deploys its `theta_k`. There is no global model.

    Notes:
      The client's own model is always among those weighed: it need not be sent. A client holds out
      the same random examples in every round. Equal affinities are chosen from at random. The paper
      deploys the mixture at the end of a round, which here begins the next: what is deployed is
      the mixture after training. Taken from its authors' settings: exploration and decay, of which
      the paper does not say whether it multiplies (it does here). PFLlib never explores, holds out
      the last examples, and takes the mean of the batches' losses for `V_k`.
    """

    def init_server(key, population):
        model, clients = task.init(key), population.num_clients
        dtype = jnp.result_type(*jax.tree.leaves(model))
        return FedFomoServer(
            models=jax.tree.map(lambda leaf: jnp.repeat(leaf[None], clients, axis=0), model),
            uploaded=jnp.zeros(clients, bool),
            affinity=jnp.eye(clients, dtype=dtype),
        )

    def init_client(server, profile, key):
        initial = jax.tree.map(lambda leaf: leaf[0], server.models)
        return FedFomoClient(initial, initial)

    def download(server, context):
        clients = server.uploaded.shape[0]
        ids = jnp.arange(clients, dtype=jnp.int32)
        explore_key, tie_key = jax.random.split(context.child(2).key)
        own = ids == context.client_id
        affinity = own.astype(server.affinity.dtype) @ server.affinity  # zeros for the unseen
        chance = exploration * (1 - exploration_decay) ** context.round
        explores = jax.random.uniform(explore_key) < chance
        usable = server.uploaded & ~own
        keys = (~usable, jnp.where(explores, 0, -affinity), jax.random.bits(tie_key, ids.shape))
        *_, order = jax.lax.sort((*keys, ids), num_keys=len(keys))
        chosen = order[: min(models, clients) - 1]
        sent = jax.tree.map(lambda leaf: leaf[chosen], server.models)
        return Sent(sent, chosen, usable[chosen])

    def hold_out(data, client_id):
        """Returns the examples to train on, and those to weigh models by."""
        if local.shuffle:
            data = data.shuffled(jax.random.fold_in(jax.random.key(0), client_id))
        count = jnp.floor(validation_share * data.size).astype(jnp.int32)
        cut = data.size - jnp.clip(count, 0, jnp.maximum(data.size - 1, 0))
        return data.rows(0, cut), data.rows(cut, data.size)

    def gains(before, candidates, data, context):
        """Returns `[models]`, the loss that each candidate saves per distance from `before`."""
        everything = jax.tree.map(
            lambda one, many: jnp.concatenate([one[None], many]), before, candidates
        )

        def add_up(total, batch, key):
            losses = jax.vmap(task.losses, in_axes=(0, None, None))(everything, batch, key)
            return total + jnp.sum(losses * batch.mask, axis=1)

        whole = local._replace(drop_remainder=False, shuffle=False, epochs=1)
        leaves = jax.tree.leaves(everything)
        zeros = jnp.zeros(leaves[0].shape[0], jnp.result_type(*leaves))
        loss = core.for_each_batch(add_up, zeros, data, context, whole)
        loss = loss / jnp.maximum(data.size, 1)
        squared = jax.vmap(tree.squared_distance, in_axes=(0, None))(candidates, before)
        gain = (loss[0] - loss[1:]) / (jnp.sqrt(squared) + LEAST_DISTANCE)
        return jnp.where(
            squared > 0, gain, 0
        )  # the same model gains nothing, whatever the rounding

    def client_update(received, client, data, context):
        training, held_out = hold_out(data, context.client_id)
        candidates = jax.tree.map(
            lambda own, others: jnp.concatenate([own[None], others]), client.model, received.models
        )
        gain = gains(client.before, candidates, held_out, context.child(0))
        gain = jnp.where(jnp.append(True, received.usable), gain, 0)
        helpful = jnp.maximum(gain, 0)
        total = jnp.sum(helpful)
        shares = helpful / jnp.where(total > 0, total, 1)
        mixture = jax.tree.map(
            lambda leaf: jnp.tensordot(shares.astype(leaf.dtype), leaf, 1), candidates
        )
        start = tree.where(total > 0, mixture, client.model)

        trained = core.train(task.loss, start, training, context.child(1), local)
        return core.ClientOutput(
            state=FedFomoClient(trained.model, start),
            each=(trained.model, gain, jnp.append(context.client_id, received.ids)),
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        trained, gain, givers = uploads.each
        clients = server.uploaded.shape[0]
        takers = jnp.where(cohort.ids < 0, clients, cohort.ids)  # an empty place writes nothing
        return FedFomoServer(
            models=jax.tree.map(
                lambda all, new: all.at[takers].set(new, mode="drop"), server.models, trained
            ),
            uploaded=server.uploaded.at[takers].set(True, mode="drop"),
            affinity=server.affinity.at[takers[:, None], givers].add(gain, mode="drop"),
        )

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: client.model,
        download=download,
    )
