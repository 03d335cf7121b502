"""One federated round, and many of them, as one compiled program.

    ids      choose the cohort, order it by size, deal it over the devices
    lend     bring the private states of those who train elsewhere than they live
    update   run `client_update` for every client; add up what goes to the server
    server   let the method take its server step with the total
    exchange let the cohort learn from one another, where the method does
    return   send those states home

The same round as a plain Python loop over clients stands in `engine/reference.py`; where rows and
examples lie on the host, `engine/host.py` fetches and stores them, and the rest is the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from pfljax.core import tree
from pfljax.core.types import Algorithm, Cohort, Context, FederatedState, PyTree, Uploads
from pfljax.engine import mapping, sampling, visits
from pfljax.engine.examples import Examples

# A client's key in a round is fold_in(fold_in(key, round), id); these lie beyond every id.
COHORT_KEY = 2**32 - 1
SERVER_KEY = 2**32 - 2
EVALUATION_KEY = 2**32 - 3


def train_cohort(
    algorithm: Algorithm,
    clients_per_chunk: int,
    state: FederatedState,
    examples: Examples,
    places: jax.Array,
    cohort: Cohort,
    num_rounds: jax.Array,
) -> tuple[FederatedState, dict[str, jax.Array]]:
    """Runs a round of a given cohort, wherever its states and examples came from.

    Args:
      algorithm: the method.
      clients_per_chunk: how many clients a device trains together.
      state: `clients` is the `store.Hand` of this device's share of the cohort.
      examples: at least those of this share.
      places: `[share]` int32, where each client of this share stands in `examples`; -1 where it is
        nobody.
      cohort: of all devices, one device's share after the other.
      num_rounds: `[]` int32, the planned length of the run.

    Returns:
      The next state, and the metrics that `one_round` returns.
    """
    round_key = jax.random.fold_in(state.key, state.round)

    def context(stream, client_id=-1):
        key = jax.random.fold_in(round_key, stream)
        return Context(key, state.round, num_rounds, client_id)

    mine = cohort.ids.reshape(mapping.num_devices(), -1)[mapping.device_index()]

    def update(client, private):
        client_id, place = client
        data = examples.of_client(place)
        output = algorithm.update_client(state.server, private, data, context(client_id, client_id))
        present = client_id >= 0
        uploaded = (output.sum, output.metrics, jnp.ones((), jnp.int32))
        uploaded = tree.where(present, uploaded, tree.zeros_like(uploaded))
        each = tree.where(present, output.each, tree.zeros_like(output.each))
        return output.state, each, uploaded

    hand, each, sums = mapping.map_states(
        update, state.clients, (mine, places), clients_per_chunk=clients_per_chunk
    )
    total, metrics, count = mapping.sum_over_devices(sums)

    uploads = Uploads(total, mapping.stack_over_devices(each))
    server = algorithm.server_update(state.server, uploads, cohort, context(SERVER_KEY))
    server = tree.where(count > 0, server, state.server)

    if algorithm.exchange is not None:

        def exchange(client, private):
            member, client_id = client
            moved = algorithm.exchange(
                server,
                private,
                uploads,
                cohort,
                member,
                context(client_id, client_id).child(1),
            )
            return moved, (), ()

        members = mapping.device_index() * mine.shape[0] + jnp.arange(mine.shape[0])
        hand, _, _ = mapping.map_states(
            exchange, hand, (members, mine), clients_per_chunk=clients_per_chunk
        )

    metrics = {name: value / jnp.maximum(count, 1) for name, value in metrics.items()}
    chunks = cohort.sizes.reshape(-1, clients_per_chunk)
    metrics["cohort"] = count
    metrics["examples"] = jnp.sum(chunks)
    # Clients trained together all wait for the largest.
    metrics["slots"] = jnp.sum(jnp.max(chunks, axis=1)) * clients_per_chunk
    return FederatedState(server, hand, state.round + 1, state.key), metrics


def cohort_key(key: jax.Array, round: jax.Array) -> jax.Array:
    """Returns the key from which the cohort of a round is drawn; `key` is the run's."""
    return jax.random.fold_in(jax.random.fold_in(key, round), COHORT_KEY)


def one_round(
    algorithm: Algorithm,
    plan: sampling.CohortPlan,
    clients_per_chunk: int,
    state: FederatedState,
    guests: PyTree | None,
    examples: Examples,
    num_rounds: jax.Array,
) -> tuple[FederatedState, PyTree | None, dict[str, jax.Array]]:
    """Runs one round on every device; call it inside `mapping.over_devices`.

    Args:
      algorithm: the method.
      plan: how the cohort is chosen.
      clients_per_chunk: how many clients a device trains together.
      state: `clients` holds this device's rows only.
      guests: the room for guests, of `visits.room`.
      examples: of all clients.
      num_rounds: `[]` int32, the planned length of the run.

    Returns:
      The next state, the room for guests, and the means of the clients' metrics, with the number of
      clients (`cohort`), their training examples (`examples`), and what these cost with padding
      (`slots`).
    """

    def sizes_of(ids):
        return jnp.where(ids < 0, 0, examples.sizes["train"][jnp.maximum(ids, 0)])

    ids = sampling.sample(plan, cohort_key(state.key, state.round))
    hands = sampling.deal(
        ids,
        sizes_of(ids),
        num_devices=mapping.num_devices(),
        chunk=clients_per_chunk,
        at_home=bool(jax.tree.leaves(state.clients)),
    )
    mine, dealt = hands[mapping.device_index()], hands.reshape(-1)
    cohort = Cohort(dealt, sizes_of(dealt), plan.num_clients)
    share = state._replace(clients=visits.lend(state.clients, guests, hands))
    after, metrics = train_cohort(
        algorithm, clients_per_chunk, share, examples, mine, cohort, num_rounds
    )
    hand = after.clients
    return after._replace(clients=visits.give_back(hand, hands)), hand.guests, metrics


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

    share = sampling.hand_size(plan.places, mapping.num_devices(), clients_per_chunk)
    guests = visits.room(state.clients, share)

    def run_one(state, guests):
        return one_round(algorithm, plan, clients_per_chunk, state, guests, examples, num_rounds)

    def body(index, carry):
        state, guests, history = carry
        state, guests, metrics = run_one(state, guests)
        history = jax.tree.map(lambda all, now: all.at[index].set(now), history, metrics)
        return state, guests, history

    *_, metrics = jax.eval_shape(run_one, state, guests)
    history = jax.tree.map(
        lambda leaf: jnp.zeros((rounds_per_call, *leaf.shape), leaf.dtype), metrics
    )
    state, _, history = jax.lax.fori_loop(0, rounds_now, body, (state, guests, history))
    return state, history


def build_rounds(
    algorithm: Algorithm,
    plan: sampling.CohortPlan,
    *,
    clients_per_chunk: int,
    rounds_per_call: int,
    devices: Sequence[jax.Device] | None = None,
) -> Callable:
    """Compiles rounds into one program.

    Args:
      algorithm: the method.
      plan: how cohorts are chosen.
      clients_per_chunk: how many clients a device trains together.
      rounds_per_call: the most rounds that one call may run.
      devices: the devices to use; None means all.

    Returns:
      `(state, examples, num_rounds, rounds_now) -> (state, metrics)`: runs `rounds_now` rounds
      (traced, so that any number up to `rounds_per_call` shares one program), takes over the
      state's memory, and returns metrics of shape `[rounds_per_call]`, zeros past `rounds_now`.
    """
    return mapping.over_devices(
        functools.partial(run_rounds, algorithm, plan, clients_per_chunk, rounds_per_call),
        in_axes=(mapping.STATE_AXES, None, None, None),
        out_axes=(mapping.STATE_AXES, None),
        donate=(0,),
        devices=devices,
    )
