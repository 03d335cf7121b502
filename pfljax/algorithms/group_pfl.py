"""Group PFL: a global model, then a model for each known group of clients, then fine-tuning.

Server: a model `w_1 ... w_G` of each group and the states of their optimizers; all are the global
model until the second stage. Client: nothing.
Down: the model of the client's group. Up: its change, weighted by examples (`sum`, G messages of
which one is not zero).
Cost per client and round: one local training; per evaluation `personal_epochs` more.

References:
  Liu, Hui, Peng, "Group Personalized Federated Learning", 2022,
  https://arxiv.org/abs/2210.01863.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.errors import UserError
from pfljax.ops import averaging, stacked


@checked
def group_pfl(
    task: core.Task,
    local: core.LocalTraining,
    *,
    groups: Annotated[int, core.at_least(1)] = 2,
    group_of_clients: str = "",
    global_share: Annotated[float, core.between(0, 1)] = 0.5,
    personal_epochs: Annotated[int, core.at_least(0)] = 1,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging of all clients, then of each group, and fine-tuning of each client.

        theta_k = local training from w_g on L_k,  g the group of client k
        the first round(global_share T) of T rounds:  Delta_g = the mean of theta_k - w_g over all
        later rounds:  Delta_g = the mean of theta_k - w_g over the clients of group g
        w_g <- w_g + server_optimizer(-Delta_g),   if there is such a client

    Args:
      task: The model and its loss.
      local: The clients' local training and fine-tuning.
      groups: Number of groups, 2 to 10; 1 is FedAvg with fine-tuning.
      group_of_clients: The group of each client from 0 on, separated by commas, in the order of the
        clients' ids, such as '0,0,1' for three clients; '' puts client k into group k mod `groups`,
        as `config.data.feature_shift` and `config.data.concept_shift` do.
      global_share: Fraction of the planned rounds in which all clients train one model, 0 to 1; 1
        is FedAvg with fine-tuning, and 0 trains each group from scratch.
      personal_epochs: Number of epochs of fine-tuning before an evaluation, 0 to 20.
      server_optimizer: As in FedAvg, for each group.

    Returns:
      The method; its server state is FedAvg's, with leaves `[G, ...]`. There is no global model.

    Raises:
      UserError: `group_of_clients` has an entry that is no group, or too few entries.

    Notes:
      The paper gives the three stages; their lengths are ours. The groups are known, as from a
      country or a topic, and not found. Held-out clients have the last ids; one that
      `group_of_clients` does not list fine-tunes the mean of all groups' models.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task)
    listed = _parse(group_of_clients, groups)

    def group_of(client_id):
        """Returns `[]` int32, the group of a client, which is listed if there is a list."""
        if not listed:
            return client_id % groups
        return jnp.array(listed, jnp.int32)[jnp.minimum(client_id, len(listed) - 1)]

    def init_server(population, key):
        if listed and len(listed) < population.num_clients:
            raise UserError(
                f"group_pfl: group_of_clients has {len(listed)} entries for "
                f"{population.num_clients} clients; give the group of each client."
            )
        models = stacked.repeat(task.init(key), groups)
        return averaging.init_stacked(models, server_optimizer)

    def client_update(start, client, data, context):
        trained = core.train(task.loss, start, data, context, local)
        change = tree.subtract(trained.params, start)
        weights = data.size * (jnp.arange(groups) == group_of(context.client_id))
        return core.ClientOutput(
            state=client,
            sum=averaging.weighted_for_each(change, weights),
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        is_global = context.round < jnp.round(global_share * context.num_rounds)

        def over_groups(leaf):
            total = jnp.broadcast_to(jnp.sum(leaf, axis=0, keepdims=True), leaf.shape)
            return jnp.where(is_global, total, leaf)

        total = jax.tree.map(over_groups, uploads.total)
        return averaging.apply_stacked(server, total, server_optimizer)

    def personalize(server, client, data, context):
        client_id = jnp.asarray(context.client_id)
        of_group = stacked.take(server.params, group_of(client_id))
        start = of_group
        if listed:
            of_all = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), server.params)
            start = tree.where(client_id < len(listed), of_group, of_all)
        trained = core.train(task.loss, start, data, context, local, epochs=personal_epochs)
        return trained.params

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: (),
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        download=lambda server, context: stacked.take(server.params, group_of(context.client_id)),
    )


def _parse(text: str, groups: int) -> tuple[int, ...]:
    """Returns the groups in a list such as '0,0,1'; `()` for an empty text."""
    entries = [entry.strip() for entry in text.split(",")] if text.strip() else []
    for entry in entries:
        if not entry.isdecimal() or int(entry) >= groups:
            raise UserError(
                f"group_pfl: group_of_clients has the entry {entry!r}; give numbers from 0 to "
                f"{groups - 1}, separated by commas, or change groups."
            )
    return tuple(int(entry) for entry in entries)
