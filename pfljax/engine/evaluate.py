"""Evaluation of every client in one program; it knows no method by name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from pfljax.core import tree
from pfljax.core.types import Algorithm, Context, FederatedState, Task
from pfljax.engine import mapping, store
from pfljax.engine.examples import Examples
from pfljax.engine.round import EVALUATION_KEY

SPLITS = ("test", "validation")


def evaluate_client(
    algorithm: Algorithm,
    task: Task,
    batch_size: int,
    server,
    client,
    client_id: jax.Array,
    examples: Examples,
    context: Context,
) -> dict[str, dict[str, dict[str, jax.Array]]]:
    """Scores one client's personalized model, and the global one, on its own examples.

    A client that never takes part in training joins by one local update, of which it uploads
    nothing; its model is personalized after that.

    Args:
      algorithm: the method.
      task: model and metrics.
      batch_size: examples scored together.
      server: the method's server state.
      client: the client's private state.
      client_id: `[]` int32; -1 scores nothing.
      examples: of all clients.
      context: the client's key and the round.

    Returns:
      `{model: {split: {metric: []}}}`, sums over the client's examples; model is 'personal' and,
      where the method has one, 'global'.
    """
    data = examples.of_client(client_id)
    if examples.num_participants < examples.num_clients:
        unseen = client_id >= examples.num_participants
        # Clients that took part are given no examples here, so that the update costs nothing.
        joining = dataclasses.replace(data, size=jnp.where(unseen, data.size, 0))
        joined = algorithm.update_client(server, client, joining, context.child(0)).state
        client = tree.where(unseen, joined, client)

    models = {"personal": algorithm.personalize(server, client, data, context.child(1))}
    if algorithm.global_model is not None:
        models["global"] = algorithm.global_model(server)
    predict = algorithm.predict or (lambda model, inputs, key: task.predict(model, inputs))

    def score(split):
        data = examples.of_client(client_id, split)

        def batch_scores(number):
            batch = data.take(number * batch_size + jnp.arange(batch_size, dtype=jnp.int32))
            key = context.child(2 + SPLITS.index(split)).child(number).key
            return {
                name: task.metrics(
                    # A global model answers as the task does; only personal ones may differ.
                    predict(model, batch.inputs, key)
                    if name == "personal"
                    else task.predict(model, batch.inputs),
                    batch,
                )
                for name, model in models.items()
            }

        zeros = tree.zeros_like(jax.eval_shape(batch_scores, jnp.zeros((), jnp.int32)))
        return jax.lax.fori_loop(
            0,
            -(-data.size // batch_size),
            lambda number, sums: tree.add(sums, batch_scores(number)),
            zeros,
        )

    scores = {split: score(split) for split in SPLITS}
    return {name: {split: scores[split][name] for split in SPLITS} for name in models}


def evaluate(
    algorithm: Algorithm,
    task: Task,
    batch_size: int,
    clients_per_chunk: int,
    state: FederatedState,
    examples: Examples,
    num_rounds: jax.Array,
) -> dict[str, dict[str, dict[str, jax.Array]]]:
    """Scores all clients, each on the device that owns it; see `build_evaluation`."""
    moment = jax.random.fold_in(jax.random.fold_in(state.key, state.round), EVALUATION_KEY)
    ids = store.owned_ids(examples.num_clients)
    padded_ids, padded = ids, state.clients
    if fill := -ids.shape[0] % clients_per_chunk:
        padded_ids = jnp.pad(ids, (0, fill), constant_values=-1)
        rows = jnp.minimum(jnp.arange(ids.shape[0] + fill), ids.shape[0] - 1)
        padded = jax.tree.map(lambda leaf: leaf[rows], state.clients)

    def one(row):
        client_id, client = row
        key = jax.random.fold_in(moment, client_id)
        context = Context(key, state.round, num_rounds, client_id)
        scores = evaluate_client(
            algorithm, task, batch_size, state.server, client, client_id, examples, context
        )
        return scores, ()

    scores, _ = mapping.map_and_sum(one, (padded_ids, padded), clients_per_chunk=clients_per_chunk)

    def by_id(leaf):
        """`[rows]` on each device -> `[num_clients]`; client i is row i // devices of one."""
        stacked = mapping.stack_over_devices(leaf[: ids.shape[0]])
        return stacked.reshape(-1, ids.shape[0]).T.reshape(-1)[: examples.num_clients]

    return jax.tree.map(by_id, scores)


def build_evaluation(
    algorithm: Algorithm,
    task: Task,
    *,
    batch_size: int,
    clients_per_chunk: int,
    devices: Sequence[jax.Device] | None = None,
) -> Callable:
    """Compiles the evaluation of all clients into one program.

    Args:
      algorithm: the method.
      task: model and metrics.
      batch_size: examples scored together.
      clients_per_chunk: how many clients a device scores together.
      devices: the devices to use; None means all.

    Returns:
      `(state, examples, num_rounds) -> {model: {split: {metric: [num_clients]}}}`, sums over each
      client's examples.
    """
    return mapping.over_devices(
        functools.partial(evaluate, algorithm, task, batch_size, clients_per_chunk),
        in_axes=(mapping.STATE_AXES, None, None),
        out_axes=None,
        devices=devices,
    )
