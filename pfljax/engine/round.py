"""One federated round, and many of them, as one compiled program.

    ids      choose the cohort, order it by size, deal it over the devices
    lend     bring the private states of those who train elsewhere than they live
    update   run `client_update` for every client; add up what goes to the server
    server   let the method take its server step with the total
    exchange let the cohort learn from one another, where the method does
    return   send those states home

The same round as a plain Python loop over clients stands in `engine/reference.py`; where rows and
examples are kept on the host, `engine/clients/on_host.py` fetches and stores them; the rest is the
same.
"""

from __future__ import annotations

import functools

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


def train_cohort(
    algorithm: Algorithm,
    clients_per_chunk: int,
    state: FederatedState,
    examples: Examples,
    rows: jax.Array,
    cohort: Cohort,
    num_rounds: jax.Array,
) -> tuple[FederatedState, dict[str, jax.Array]]:
    """Runs a round of a given cohort, wherever its states and examples came from.

    Args:
      algorithm: the method.
      clients_per_chunk: how many clients a device trains together.
      state: `clients` is the `store.Hand` of this device's shard of the cohort.
      examples: at least those of this shard.
      rows: `[shard]` int32, where each client of this shard stands in `examples`; -1 where it is
        nobody.
      cohort: of all devices, one device's shard after the other.
      num_rounds: `[]` int32, the planned length of the run.

    Returns:
      The next state, and the metrics that `one_round` returns.
    """
    context = functools.partial(client_context, state.key, state.round, num_rounds)
    mine = cohort.ids.reshape(mapping.num_devices(), -1)[mapping.device_index()]

    def update(client, private):
        client_id, row = client
        data = examples.of_client(row)
        profile = examples.profile(row)._replace(id=client_id)
        private = init.private_state(algorithm, state, private, profile)
        output = algorithm.update_client(
            state.server, private, data, context(streams.UPDATE, client_id)
        )
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
        update, state.clients, (mine, rows), clients_per_chunk=clients_per_chunk
    )
    total, metrics, count = mapping.sum_over_devices(sums)

    uploads = Uploads(total, mapping.stack_over_devices(each))
    of_server = Context(
        streams.key_of(state.key, streams.SERVER, state.round), state.round, num_rounds
    )
    server = algorithm.server_update(state.server, uploads, cohort, of_server)
    server = tree.where(count > 0, server, state.server)

    if algorithm.exchange is not None:

        def exchange(client, private):
            member, client_id, row = client
            moved = algorithm.exchange(
                server,
                private,
                examples.of_client(row),
                uploads,
                cohort,
                member,
                context(streams.EXCHANGE, client_id),
            )
            return moved, tree.is_finite(moved) | (client_id < 0), ()

        members = mapping.device_index() * mine.shape[0] + jnp.arange(mine.shape[0])
        states, still_finite, _ = mapping.map_states(
            exchange, states, (members, mine, rows), clients_per_chunk=clients_per_chunk
        )
        finite &= still_finite

    metrics = {
        name: jnp.where(total.weight > 0, mean(total), jnp.nan) for name, total in metrics.items()
    }
    chunks = cohort.sizes.reshape(-1, clients_per_chunk)
    metrics["cohort"] = count
    metrics["examples"] = jnp.sum(chunks)
    # Clients trained together all wait for the largest.
    metrics["slots"] = jnp.sum(jnp.max(chunks, axis=1)) * clients_per_chunk
    one_client = mapping.max_over_devices(jnp.max(jnp.where(finite, ALL_FINITE, mine)))
    server_only = jnp.where(tree.is_finite((server, total)), ALL_FINITE, SERVER_NOT_FINITE)
    metrics["not_finite"] = jnp.maximum(one_client, server_only)
    joined = state.joined
    if jax.tree.leaves(joined):
        ids = jnp.where(cohort.ids < 0, joined.shape[0], cohort.ids)
        joined = joined.at[ids].set(True, mode="drop")
    return FederatedState(server, states, state.round + 1, state.key, joined), metrics


def client_context(
    key: jax.Array,
    round: jax.Array,
    num_rounds: jax.Array,
    stream: int,
    client_id: jax.Array,
) -> Context:
    """Returns the context in which one of a client's functions runs.

    Args:
      key: the run's.
      round: `[]` int32, counted from 0.
      num_rounds: `[]` int32, the planned length of the run.
      stream: of `core.streams`, below which there is a key for each round and client.
      client_id: `[]` int32.
    """
    own = streams.key_of(key, streams.CLIENT, client_id)
    return Context(streams.key_of(key, stream, round, client_id), round, num_rounds, client_id, own)


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
      algorithm: the method.
      plan: how the cohort is chosen.
      clients_per_chunk: how many clients a device trains together.
      state: `clients` holds this device's rows only.
      buffer: the room for buffer, of `visits.room`.
      examples: of all clients.
      num_rounds: `[]` int32, the planned length of the run.

    Returns:
      The next state, the room for buffer, and the metrics: the means of the clients' (NaN where no
      client had anything to report), with the number of clients (`cohort`), their training examples
      (`examples`), what these cost with padding (`slots`), the mean of the bytes that clients send
      where an aggregator decides them (`upload_bytes`), and `not_finite`: the id of a client
      whose state or metric has an entry that is not finite, `SERVER_NOT_FINITE` where only the sum
      of the messages or the server's next state has one, else `ALL_FINITE`.
    """

    def sizes_of(ids):
        return jnp.where(ids < 0, 0, examples.sizes["train"][jnp.maximum(ids, 0)])

    ids = sampling.sample(plan, cohort_key(state.key, state.round))
    assignment = sampling.assign(
        ids,
        sizes_of(ids),
        num_devices=mapping.num_devices(),
        chunk=clients_per_chunk,
        prefer_owner=bool(jax.tree.leaves(state.clients)),
    )
    mine, assigned = assignment[mapping.device_index()], assignment.reshape(-1)
    cohort = Cohort(assigned, sizes_of(assigned), plan.num_clients)
    shard = state._replace(clients=migration.gather_states(state.clients, buffer, assignment))
    after, metrics = train_cohort(
        algorithm, clients_per_chunk, shard, examples, mine, cohort, num_rounds
    )
    states = after.clients
    return (
        after._replace(clients=migration.scatter_states(states, assignment)),
        states.remote,
        metrics,
    )


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
    """Runs `rounds_now` rounds on every device; see `build_rounds`."""

    shard = sampling.clients_per_device(plan.capacity, mapping.num_devices(), clients_per_chunk)
    buffer = migration.receive_buffer(state.clients, shard)

    def run_one(state, buffer):
        return one_round(algorithm, plan, clients_per_chunk, state, buffer, examples, num_rounds)

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
