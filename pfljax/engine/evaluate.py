"""Evaluation of all clients, or of some, in one program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.core import streams, tree
from pfljax.core.algorithm import Adapt, Algorithm, Predict
from pfljax.core.types import Context, FederatedState, Params, PyTree, Task
from pfljax.engine import init, mapping
from pfljax.engine.clients import on_device
from pfljax.engine.examples import Examples
from pfljax.engine.round import client_context
from pfljax.errors import UserError

SPLITS = ("test", "validation")

# `(algorithm, server, client, examples, row, unseen, context) -> tree` of arrays, what a program
# finds out about a client: `deployed`, or `evaluate_client` for a task and a batch size.
OfClient = Callable[..., PyTree]


def deployed(
    algorithm: Algorithm,
    server,
    client,
    examples: Examples,
    row: jax.Array,
    unseen: jax.Array | None,
    context: Context,
) -> dict[str, Params]:
    """Returns the models that a client would deploy now.

    A held-out client, which never takes part in training, is adapted by one local update from the
    server's current state, without uploading anything; then its model is personalized.

    Args:
      algorithm: The method.
      server: The method's server state.
      client: The client's private state.
      examples: The examples of this and other clients.
      row: `[]` int32, the row of the client in `examples`; -1 for padding.
      unseen: `[]` bool, whether the client is held out; None if no client is.
      context: The context, with the client's key and the round.

    Returns:
      `{model: params}`; model is 'personal' and, if the method has one, 'global'.
    """
    data = examples.of_client(row)
    if unseen is not None:
        # Participating clients get no examples here, so that the update costs nothing.
        joining = dataclasses.replace(data, size=jnp.where(unseen, data.size, 0))
        joined = algorithm.update_client(server, client, joining, context.child(0)).state
        client = tree.where(unseen, joined, client)
    models = {"personal": algorithm.personalize(server, client, data, context.child(1))}
    if algorithm.global_params is not None:
        models["global"] = algorithm.global_params(server)
    return models


def evaluate_client(
    task: Task,
    batch_size: int,
    algorithm: Algorithm,
    server,
    client,
    examples: Examples,
    row: jax.Array,
    unseen: jax.Array | None,
    context: Context,
) -> dict[str, dict[str, dict[str, jax.Array]]]:
    """Evaluates the models of `deployed` on the examples of one client.

    Args:
      task: The model and its metrics.
      batch_size: Number of examples evaluated at once.
      algorithm: The method.
      server: The method's server state.
      client: The client's private state.
      examples: The examples of this and other clients.
      row: `[]` int32, the row of the client in `examples`; -1 for padding.
      unseen: `[]` bool, whether the client is held out; None if no client is.
      context: The context, with the client's key and the round.

    Returns:
      `{model: {split: {metric: []}}}`, sums over the client's examples, and the values of
      `Task.client_metrics`; model is 'personal' and, if the method has one, 'global'.
    """
    models = deployed(algorithm, server, client, examples, row, unseen, context)
    # The global model predicts as in the task; only personalized models may predict differently.
    evaluate_model = {
        "personal": scorer(task, algorithm.predict, algorithm.adapt),
        "global": scorer(task),
    }

    def score(split):
        data = examples.of_client(row, split)
        capacity = -(-data.max_size // batch_size) * batch_size

        @mapping.traced_once
        def batch_scores(number):
            batch = data.take(number * batch_size + jnp.arange(batch_size, dtype=jnp.int32))
            key = context.child(2 + SPLITS.index(split)).child(number).key
            of_models = {
                name: evaluate_model[name](params, batch, key) for name, params in models.items()
            }
            sums = {name: sums for name, (sums, _) in of_models.items()}
            return sums, {name: outputs for name, (_, outputs) in of_models.items()}

        def add_batch(number, results):
            sums, kept = results
            batch_sums, outputs = batch_scores(number)

            def keep(buffer, rows):
                return jax.lax.dynamic_update_slice_in_dim(buffer, rows, number * batch_size, 0)

            return tree.add(sums, batch_sums), jax.tree.map(keep, kept, outputs)

        sums, outputs = jax.eval_shape(batch_scores, jnp.zeros((), jnp.int32))
        empty = jax.tree.map(
            lambda rows: jnp.zeros((capacity, *rows.shape[1:]), rows.dtype), outputs
        )
        sums, outputs = jax.lax.fori_loop(
            0, -(-data.size // batch_size), add_batch, (tree.zeros_like(sums), empty)
        )
        if not task.client_metrics:
            return sums
        whole = data.take(jnp.arange(capacity, dtype=jnp.int32))
        return {
            name: sums[name]
            | {
                metric: compute(task.decode(outputs[name]), whole.targets, whole.mask)
                for metric, compute in task.client_metrics.items()
            }
            for name in models
        }

    scores = {split: score(split) for split in SPLITS}
    return {name: {split: scores[split][name] for split in SPLITS} for name in models}


def scorer(task: Task, predict: Predict | None = None, adapt: Adapt | None = None) -> Callable:
    """Returns the function that scores the models of a task on a batch.

    Args:
      task: The model and its metrics.
      predict: Computes the outputs of the models; None for `Task.predict`.
      adapt: Adapts the models to the batch before; None leaves them as they are.

    Returns:
      `(params, batch, key) -> (sums, outputs)`: `{name: []}`, as `Task.evaluate` returns them, and
      the outputs `[B, ...]` for `Task.client_metrics`; `()` for a task without any.

    Raises:
      UserError: The metrics of the task are not computed from such outputs.
    """
    if task.client_metrics and (task.metrics is None or task.params_metrics is not None):
        raise UserError(
            f"The metrics {', '.join(task.client_metrics)} need all outputs of a client at once, "
            "but this task computes its metrics without them, as they would not fit into memory or "
            "are random; remove them from config.metrics."
        )
    if predict is not None and task.metrics is None:
        raise UserError(
            "The method combines the outputs of several models, but the metrics of this task are "
            "not computed from outputs; choose a method with one personalized model, such as ditto."
        )

    def score(params, batch, key):
        if adapt is not None:
            params = adapt(params, batch.inputs, batch.mask)
        if predict is None and not task.client_metrics:
            return task.evaluate(params, batch, key), ()
        if predict is None:
            outputs = task.predict(params, batch.inputs)
        else:
            outputs = predict(params, batch.inputs, key)
        return task.metrics(outputs, batch), outputs if task.client_metrics else ()

    return score


def evaluate_rows(
    algorithm: Algorithm,
    task: Task,
    batch_size: int,
    clients_per_chunk: int,
    state: FederatedState,
    examples: Examples,
    ids: jax.Array,
    rows: jax.Array,
    num_clients: int,
    num_rounds: jax.Array,
    of_client: OfClient | None = None,
) -> PyTree:
    """Evaluates some clients on this device, whatever the source of their states and examples.

    Args:
      algorithm: The method.
      task: The model and its metrics.
      batch_size: Number of examples evaluated at once.
      clients_per_chunk: Number of clients evaluated at once.
      state: The state; `clients` are the states of these clients.
      examples: The examples of at least these clients.
      ids: `[rows]` int32; -1 is padding.
      rows: `[rows]` int32, the row of each client in `examples`; -1 is padding.
      num_clients: Number of clients, including held-out ones.
      num_rounds: `[]` int32, the planned length of the run.
      of_client: What is found out about a client; None for `evaluate_client`.

    Returns:
      `{model: {split: {metric: [rows]}}}`, as `evaluate_client` returns them; or the result of
      another `of_client`, stacked `[rows, ...]`.
    """
    find = of_client or functools.partial(evaluate_client, task, batch_size)
    num_rows, clients = ids.shape[0], state.clients
    if fill := -num_rows % clients_per_chunk:
        ids, rows = (jnp.pad(each, (0, fill), constant_values=-1) for each in (ids, rows))
        stored = jnp.minimum(jnp.arange(num_rows + fill), num_rows - 1)
        clients = jax.tree.map(lambda leaf: leaf[stored], clients)

    def one(one_client):
        client_id, row, client = one_client
        context = client_context(state.key, state.round, num_rounds, streams.EVALUATION, client_id)
        profile = examples.profile(row)._replace(id=client_id)
        client = init.private_state(algorithm, state, client, profile)
        unseen = None
        if examples.num_participants < num_clients:
            unseen = client_id >= examples.num_participants
        return find(algorithm, state.server, client, examples, row, unseen, context), ()

    scores, _ = mapping.map_and_sum(one, (ids, rows, clients), clients_per_chunk=clients_per_chunk)
    return jax.tree.map(lambda leaf: leaf[:num_rows], scores)


def evaluate(
    algorithm: Algorithm,
    task: Task,
    batch_size: int,
    clients_per_chunk: int,
    state: FederatedState,
    examples: Examples,
    num_rounds: jax.Array,
    eval_ids: np.ndarray | None = None,
    of_client: OfClient | None = None,
    members: np.ndarray | None = None,
) -> PyTree:
    """Evaluates clients, each on the device that owns it; see `programs.build_evaluation`.

    Args:
      algorithm: The method.
      task: The model and its metrics.
      batch_size: Number of examples evaluated at once.
      clients_per_chunk: Number of clients evaluated at once.
      state: The state of the run.
      examples: The examples of all clients.
      num_rounds: `[]` int32, the planned length of the run.
      eval_ids: `[n]`, the ids of the evaluated clients, static; None for all.
      of_client: What is found out about a client; None for `evaluate_client`.
      members: The ids of the clients whose states `state` has, in ascending order, static; None for
        all clients.
    """
    count = examples.num_clients if members is None else len(members)
    if eval_ids is None:
        rows = on_device.owned_ids(count)
    else:
        own = eval_ids if members is None else np.searchsorted(members, eval_ids)
        table, positions = on_device.split_by_owner(own, mapping.num_devices())
        rows = jnp.asarray(table)[mapping.device_index()]
        owned_rows = jnp.maximum(rows, 0) // mapping.num_devices()
        state = state._replace(clients=jax.tree.map(lambda leaf: leaf[owned_rows], state.clients))
    ids = rows
    if members is not None:
        ids = jnp.where(rows < 0, -1, jnp.asarray(members)[jnp.maximum(rows, 0)])
    scores = evaluate_rows(
        algorithm,
        task,
        batch_size,
        clients_per_chunk,
        state,
        examples,
        ids,
        ids,
        examples.num_clients,
        num_rounds,
        of_client,
    )

    def by_id(leaf):
        """Returns `[num_clients]` from `[rows]` of each device; client i is row i // devices."""
        if eval_ids is not None:
            return mapping.stack_over_devices(leaf)[positions]
        return mapping.stack_over_devices(leaf).reshape(-1, rows.shape[0]).T.reshape(-1)[:count]

    return jax.tree.map(by_id, scores)
