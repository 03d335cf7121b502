"""One federated round, and many of them, as one compiled program.

    sample    sample the cohort, and assign its clients to the devices with balanced load
    gather    copy the states of clients that train on another device than their owner
    prepare   sum the terms that the clients compute before their updates, if the method does
    update    run `client_update` for every client; sum the uploads
    server    run the method's server update with the total
    exchange  update the cohort's states from each other's uploads, if the method does
    scatter   copy these states back to their owners

The same round as a plain Python loop over clients is `engine/reference.py`. For clients on the
host, `engine/clients/on_host.py` fetches and stores states and examples; the rest is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pfljax.core import streams, tree
from pfljax.core.algorithm import Algorithm
from pfljax.core.types import ClientOutput, Cohort, Context, FederatedState, PyTree, Uploads
from pfljax.core.uploads import Weighted, mean, weighted
from pfljax.engine import init, mapping, sampling
from pfljax.engine.clients import migration
from pfljax.engine.examples import Examples
from pfljax.errors import UserError

# What the engine itself reports of a round; a method's metrics have other names.
METRICS = ("cohort", "examples", "slots", "not_finite", "upload_bytes")

# Values of the metric `not_finite` that are no client's id.
ALL_FINITE, SERVER_NOT_FINITE = -2, -1


class Updated(NamedTuple):
    """A cohort after the updates of its clients, as one device sees it.

    Attributes:
      states: The `DeviceCohort` of this device's shard, with the clients' next states.
      each: The shard's `ClientOutput.each`, stacked `[shard, ...]`.
      finite: `[shard]` bool, whether the state and the metrics of each client are finite.
      total: The sum of `ClientOutput.sum` over the cohort.
      metrics: The sums of the clients' metrics, as `Weighted`.
      count: `[]` int32, number of clients in the cohort.
    """

    states: Any
    each: PyTree
    finite: jax.Array
    total: PyTree
    metrics: dict[str, Weighted]
    count: jax.Array


def prepare_clients(
    algorithm: Algorithm,
    clients_per_chunk: int,
    state: FederatedState,
    examples: Examples,
    ids: jax.Array,
    rows: jax.Array,
    cohort: Cohort,
    num_rounds: jax.Array,
) -> PyTree:
    """Returns the sum of `Algorithm.prepare` over the cohort; `()` for a method without.

    Args:
      algorithm: The method.
      clients_per_chunk: Number of clients that a device trains at once.
      state: The state of the run.
      examples: The examples of at least this shard.
      ids: `[shard]` int32, the clients of this shard; -1 is padding.
      rows: `[shard]` int32, the row of each client in `examples`; -1 is padding.
      cohort: The clients of all devices.
      num_rounds: `[]` int32, the planned length of the run.
    """
    if algorithm.prepare is None:
        return ()

    def prepare(client):
        client_id, row = client
        rank = cohort.rank(client_id)
        context = client_context(
            state.key, state.round, num_rounds, streams.UPDATE, client_id, rank
        )
        term = algorithm.prepare_client(state.server, examples.of_client(row), context)
        return (), tree.where(client_id >= 0, term, tree.zeros_like(term))

    _, total = mapping.map_and_sum(prepare, (ids, rows), clients_per_chunk=clients_per_chunk)
    return mapping.sum_over_devices(total)


def update_clients(
    algorithm: Algorithm,
    clients_per_chunk: int,
    prepared: PyTree,
    state: FederatedState,
    examples: Examples,
    ids: jax.Array,
    rows: jax.Array,
    cohort: Cohort,
    num_rounds: jax.Array,
) -> Updated:
    """Runs the updates of this device's shard of the cohort, and sums over all devices.

    Args:
      algorithm: The method.
      clients_per_chunk: Number of clients that a device trains at once.
      prepared: The result of `prepare_clients`.
      state: The state, whose `clients` is the `DeviceCohort` of this shard.
      examples: The examples of at least this shard.
      ids: `[shard]` int32, the clients of this shard; -1 is padding.
      rows: `[shard]` int32, the row of each client in `examples`; -1 is padding.
      cohort: The clients of all devices.
      num_rounds: `[]` int32, the planned length of the run.
    """

    def update(client, private):
        client_id, row = client
        data = examples.of_client(row)
        profile = examples.profile(row)._replace(id=client_id)
        private = init.private_state(algorithm, state, private, profile)
        rank = cohort.rank(client_id)
        context = client_context(
            state.key, state.round, num_rounds, streams.UPDATE, client_id, rank
        )
        context = context._replace(prepared=prepared)
        output = algorithm.update_client(state.server, private, data, context)
        _require_other_names(output.metrics)
        present = client_id >= 0
        uploaded = (output.sum, _as_weighted(_reported(output)), jnp.ones((), jnp.int32))
        uploaded = tree.where(present, uploaded, tree.zeros_like(uploaded))
        each = tree.where(present, output.each, tree.zeros_like(output.each))
        # A message that is not finite shows in the total, which costs one pass and not one for each
        # client, and nearly always in the losses.
        finite = tree.is_finite((output.state, output.metrics)) | ~present
        return output.state, (each, finite), uploaded

    states, (each, finite), sums = mapping.map_states(
        update, state.clients, (ids, rows), clients_per_chunk=clients_per_chunk
    )
    return Updated(states, each, finite, *mapping.sum_over_devices(sums))


def update_server(
    algorithm: Algorithm,
    state: FederatedState,
    prepared: PyTree,
    uploads: Uploads,
    cohort: Cohort,
    num_rounds: jax.Array,
    count: jax.Array,
) -> PyTree:
    """Returns the server's next state; the old one where the cohort has `count` 0."""
    key = streams.key_of(state.key, streams.SERVER, state.round)
    context = Context(key, state.round, num_rounds, prepared=prepared)
    server = algorithm.server_update(state.server, uploads, cohort, context)
    return tree.where(count > 0, server, state.server)


def exchange_clients(
    algorithm: Algorithm,
    clients_per_chunk: int,
    state: FederatedState,
    updated: Updated,
    examples: Examples,
    ids: jax.Array,
    rows: jax.Array,
    members: jax.Array,
    uploads: Uploads,
    cohort: Cohort,
    num_rounds: jax.Array,
) -> Updated:
    """Runs the exchange of this device's shard of the cohort, if the method has one.

    Args:
      algorithm: The method.
      clients_per_chunk: Number of clients that a device trains at once.
      state: The state after the server's update.
      updated: The cohort after the clients' updates.
      examples: The examples of at least this shard.
      ids: `[shard]` int32, the clients of this shard; -1 is padding.
      rows: `[shard]` int32, the row of each client in `examples`; -1 is padding.
      members: `[shard]` int32, the row of each client in `cohort`.
      uploads: The cohort's uploads.
      cohort: The clients of all devices.
      num_rounds: `[]` int32, the planned length of the run.
    """
    if algorithm.exchange is None:
        return updated

    def exchange(client, private):
        member, client_id, row = client
        moved = algorithm.exchange(
            state.server,
            private,
            examples.of_client(row),
            uploads,
            cohort,
            member,
            client_context(
                state.key,
                state.round,
                num_rounds,
                streams.EXCHANGE,
                client_id,
                cohort.rank(client_id),
            ),
        )
        return moved, tree.is_finite(moved) | (client_id < 0), ()

    states, finite, _ = mapping.map_states(
        exchange, updated.states, (members, ids, rows), clients_per_chunk=clients_per_chunk
    )
    return updated._replace(states=states, finite=updated.finite & finite)


def metrics_of(sums: dict[str, Weighted]) -> dict[str, jax.Array]:
    """Returns the means of the clients' metrics; NaN where no client reported one."""
    return {name: jnp.where(total.weight > 0, mean(total), jnp.nan) for name, total in sums.items()}


def slots(sizes: jax.Array, clients_per_chunk: int) -> jax.Array:
    """Returns `[]`, the examples of a cohort with padding: clients of a chunk take equal time."""
    return jnp.sum(jnp.max(sizes.reshape(-1, clients_per_chunk), axis=1)) * clients_per_chunk


def not_finite(updated: Updated, ids: jax.Array, server: PyTree) -> jax.Array:
    """Returns `[]` int32, the metric `not_finite` that `one_round` describes."""
    one_client = mapping.max_over_devices(jnp.max(jnp.where(updated.finite, ALL_FINITE, ids)))
    finite = tree.is_finite((server, updated.total))
    return jnp.maximum(one_client, jnp.where(finite, ALL_FINITE, SERVER_NOT_FINITE))


def mark_joined(joined: PyTree, cohort: Cohort) -> PyTree:
    """Returns which clients have taken part, with those of a cohort."""
    if not jax.tree.leaves(joined):
        return joined
    ids = jnp.where(cohort.ids < 0, joined.shape[0], cohort.ids)
    return joined.at[ids].set(True, mode="drop")


def train_cohort(
    algorithm: Algorithm,
    clients_per_chunk: int,
    state: FederatedState,
    examples: Examples,
    rows: jax.Array,
    cohort: Cohort,
    num_rounds: jax.Array,
) -> tuple[FederatedState, dict[str, jax.Array]]:
    """Runs a round of a given cohort, wherever its states and examples are kept.

    Args:
      algorithm: The method.
      clients_per_chunk: Number of clients that a device trains at once.
      state: The state, whose `clients` is the `DeviceCohort` of this device's shard of the cohort.
      examples: The examples of at least this shard.
      rows: `[shard]` int32, the row of each client in `examples`; -1 is padding.
      cohort: The clients of all devices, one device's shard after the other.
      num_rounds: `[]` int32, the planned length of the run.

    Returns:
      The next state, and the metrics that `one_round` returns.
    """
    ids = cohort.ids.reshape(mapping.num_devices(), -1)[mapping.device_index()]
    members = mapping.device_index() * ids.shape[0] + jnp.arange(ids.shape[0])
    shard = (state, examples, ids, rows, cohort, num_rounds)
    prepared = prepare_clients(algorithm, clients_per_chunk, *shard)
    updated = update_clients(algorithm, clients_per_chunk, prepared, *shard)
    uploads = Uploads(updated.total, mapping.stack_over_devices(updated.each))
    server = update_server(algorithm, state, prepared, uploads, cohort, num_rounds, updated.count)
    updated = exchange_clients(
        algorithm,
        clients_per_chunk,
        state._replace(server=server),
        updated,
        examples,
        ids,
        rows,
        members,
        uploads,
        cohort,
        num_rounds,
    )
    metrics = metrics_of(updated.metrics)
    metrics["cohort"] = updated.count
    metrics["examples"] = jnp.sum(cohort.sizes)
    metrics["slots"] = slots(cohort.sizes, clients_per_chunk)
    metrics["not_finite"] = not_finite(updated, ids, server)
    joined = mark_joined(state.joined, cohort)
    return FederatedState(server, updated.states, state.round + 1, state.key, joined), metrics


def client_context(
    key: jax.Array,
    round: jax.Array,
    num_rounds: jax.Array,
    stream: int,
    client_id: jax.Array,
    rank: jax.Array | int = -1,
) -> Context:
    """Returns the context in which one of a client's functions runs.

    Args:
      key: the run's.
      round: `[]` int32, counted from 0.
      num_rounds: `[]` int32, the planned length of the run.
      stream: of `core.streams`, below which there is a key for each round and client.
      client_id: `[]` int32.
      rank: `[]` int32, the client's rank in the cohort; -1 outside of rounds.
    """
    own = streams.key_of(key, streams.CLIENT, client_id)
    here = streams.key_of(key, stream, round, client_id)
    return Context(here, round, num_rounds, client_id, own, rank)


def _reported(output: ClientOutput) -> dict[str, PyTree]:
    """Returns a client's metrics, with the bytes of its upload where an aggregator decides them."""
    if output.size is None:
        return output.metrics
    return {**output.metrics, "upload_bytes": output.size.bits / 8}


def _as_weighted(metrics: dict[str, PyTree]) -> dict[str, Weighted]:
    """Returns a client's metrics as terms of means; a plain scalar counts once for each client."""
    return {
        name: value if isinstance(value, Weighted) else weighted(value, 1)
        for name, value in metrics.items()
    }


def _require_other_names(metrics: dict[str, PyTree]) -> None:
    taken = sorted(set(metrics) & set(METRICS))
    if taken:
        raise UserError(
            f"The method reports a metric named {taken[0]!r}, which the engine reports itself; "
            "give it another name in ClientOutput.metrics."
        )


def cohort_key(key: jax.Array, round: jax.Array) -> jax.Array:
    """Returns the key from which the cohort of a round is drawn; `key` is the run's."""
    return streams.key_of(key, streams.COHORT, round)


def assigned_cohort(
    plan: sampling.CohortPlan,
    key: jax.Array,
    examples: Examples,
    clients_per_chunk: int,
    *,
    prefer_owner: bool,
) -> tuple[jax.Array, jax.Array]:
    """Samples a cohort and assigns it to the devices.

    Args:
      plan: How the cohort is sampled.
      key: Typed PRNG key of the cohort.
      examples: The examples of all clients.
      clients_per_chunk: Number of clients that a device trains at once.
      prefer_owner: See `sampling.assign`.

    Returns:
      `[devices, shard]` int32, the clients of each device, -1 for padding; and `[devices * shard]`
      int32, their training examples.
    """

    def sizes_of(ids):
        return jnp.where(ids < 0, 0, examples.sizes["train"][jnp.maximum(ids, 0)])

    ids = sampling.sample(plan, key)
    assignment = sampling.assign(
        ids,
        sizes_of(ids),
        num_devices=mapping.num_devices(),
        chunk=clients_per_chunk,
        prefer_owner=prefer_owner,
    )
    return assignment, sizes_of(assignment.reshape(-1))


def one_round(
    algorithm: Algorithm,
    plan: sampling.CohortPlan,
    clients_per_chunk: int,
    state: FederatedState,
    buffer: PyTree | None,
    examples: Examples,
    num_rounds: jax.Array,
) -> tuple[FederatedState, PyTree | None, dict[str, jax.Array]]:
    """Runs one round on every device; call it inside `mapping.over_devices`.

    Args:
      algorithm: The method.
      plan: How the cohort is sampled.
      clients_per_chunk: Number of clients that a device trains at once.
      state: The state, whose `clients` are those that this device owns.
      buffer: The buffer for remote clients, of `migration.receive_buffer`.
      examples: The examples of all clients.
      num_rounds: `[]` int32, the planned length of the run.

    Returns:
      The next state, the buffer, and the metrics: the means of the clients' metrics (NaN where no
      client reported one), the number of clients (`cohort`), their training examples (`examples`),
      these with padding (`slots`), the mean of the bytes that clients send where an aggregator
      decides them (`upload_bytes`), and `not_finite`: the id of a client whose state or metric is
      not finite, `SERVER_NOT_FINITE` where only the sum of the uploads or the server's next state
      is not, else `ALL_FINITE`.
    """

    assignment, sizes = assigned_cohort(
        plan,
        cohort_key(state.key, state.round),
        examples,
        clients_per_chunk,
        prefer_owner=bool(jax.tree.leaves(state.clients)),
    )
    mine, assigned = assignment[mapping.device_index()], assignment.reshape(-1)
    cohort = Cohort(assigned, sizes, plan.num_clients)
    gathered = migration.gather_states(state.clients, buffer, assignment)
    # All other collectives of the round run after this exchange of states, and before the next one.
    after, metrics = train_cohort(
        algorithm,
        clients_per_chunk,
        state._replace(clients=gathered),
        examples,
        mapping.after(mine, gathered.remote),
        cohort,
        num_rounds,
    )
    states = after.clients
    clients = migration.scatter_states(states, assignment, after=(after.server, metrics))
    return after._replace(clients=clients), states.remote, metrics


def run_rounds(
    algorithm: Algorithm,
    plan: sampling.CohortPlan,
    clients_per_chunk: int,
    rounds_per_call: int,
    state: FederatedState,
    examples: Examples,
    num_rounds: jax.Array,
    rounds_now: jax.Array,
) -> tuple[FederatedState, dict[str, jax.Array]]:
    """Runs `rounds_now` rounds on every device; see `programs.rounds_program`."""

    shard = sampling.clients_per_device(plan.capacity, mapping.num_devices(), clients_per_chunk)
    buffer = migration.receive_buffer(state.clients, shard)

    @mapping.traced_once
    def run_one(state, buffer):
        return one_round(algorithm, plan, clients_per_chunk, state, buffer, examples, num_rounds)

    return repeat(run_one, rounds_per_call, state, buffer, rounds_now)


def repeat(
    run_one: Callable[[FederatedState, PyTree], tuple[FederatedState, PyTree, dict]],
    rounds_per_call: int,
    state: FederatedState,
    buffer: PyTree,
    rounds_now: jax.Array,
) -> tuple[FederatedState, dict[str, jax.Array]]:
    """Runs a round several times.

    Args:
      run_one: `(state, buffer) -> (state, buffer, metrics)`, one round.
      rounds_per_call: Largest number of rounds.
      state: The state of the run.
      buffer: The buffers for remote clients.
      rounds_now: `[]` int32, number of rounds.

    Returns:
      The next state, and the metrics `[rounds_per_call]`, zeros past `rounds_now`.
    """

    def body(index, carry):
        state, buffer, history = carry
        state, buffer, metrics = run_one(state, buffer)
        history = jax.tree.map(lambda all, now: all.at[index].set(now), history, metrics)
        return state, buffer, history

    *_, metrics = jax.eval_shape(run_one, state, buffer)
    history = jax.tree.map(
        lambda leaf: jnp.zeros((rounds_per_call, *leaf.shape), leaf.dtype), metrics
    )
    state, _, history = jax.lax.fori_loop(0, rounds_now, body, (state, buffer, history))
    return state, history
