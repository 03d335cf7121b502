"""Groups of clients with models of different architectures in one run, which share a part of them.

Each group has its own task, examples, cohort and private states, and the method is built for its
task. What the clients upload has one structure in all groups, such as prototypes or the change of a
common body, and is added up over all of them. The server keeps one state for each group. All of
these take the same step with the same uploads, so that the shared parts stay equal; only what a
group needs for itself (such as the first parameters of its model) differs.

Clients are numbered over all groups, one group after the other. In the state of such a run `server`
and `clients` are tuples with an item for each group.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.core import streams, tree
from pfljax.core.algorithm import Algorithm
from pfljax.core.types import Cohort, FederatedState, Population, PyTree, Task, Uploads
from pfljax.engine import evaluate, init, mapping, round, sampling
from pfljax.engine.clients import migration, on_device
from pfljax.engine.examples import Examples
from pfljax.errors import UserError


class Group(NamedTuple):
    """Clients with models of one architecture.

    Attributes:
      algorithm: The method, built for the task of the group.
      task: The model, its loss and its metrics.
      plan: How the cohort of the group is sampled.
      clients_per_chunk: Number of clients that a device trains or scores at once.
    """

    algorithm: Algorithm
    task: Task
    plan: sampling.CohortPlan
    clients_per_chunk: int = 1


def _first_ids(examples: Sequence[Examples]) -> np.ndarray:
    """Returns `[groups + 1]`, the id of the first client of each group, and that after the last."""
    for number, each in enumerate(examples):
        if each.num_participants < each.num_clients:
            raise UserError(
                f"Group {number} has held-out clients, which groups do not support; give all of "
                "its clients a part in training."
            )
    return np.cumsum([0, *(each.num_clients for each in examples)])


def _population(examples: Sequence[Examples]) -> Population:
    """Returns the profiles of the clients of all groups."""
    each = [one.population() for one in examples]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *each)


def share_first(states: Sequence[PyTree]) -> tuple[PyTree, ...]:
    """Returns the states with all arrays that the first one has too replaced by its own.

    Args:
      states: Trees of arrays. An array of a later state is shared where the first state has one at
        the same path with the same shape and dtype.
    """
    first = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(states[0])
    }

    def shared(path, leaf):
        other = first.get(jax.tree_util.keystr(path))
        same = other is not None and (other.shape, other.dtype) == (leaf.shape, leaf.dtype)
        return other if same else leaf

    return tuple(jax.tree_util.tree_map_with_path(shared, state) for state in states)


def init_state(
    groups: Sequence[Group], join: str, examples: Sequence[Examples], key: jax.Array
) -> FederatedState:
    """Returns the state of round 0, of the clients those that this device owns."""
    population, first_ids = _population(examples), _first_ids(examples)
    servers = share_first([init.init_server(group.algorithm, population, key) for group in groups])
    clients = []
    for group, server, own, first in zip(groups, servers, examples, first_ids, strict=False):

        def one(row, group=group, server=server, own=own, first=first):
            client_id = jnp.where(row < 0, -1, row + first)
            profile = own.profile(row)._replace(id=client_id)
            return init.init_client(group.algorithm, server, profile, key), ()

        rows = on_device.owned_ids(own.num_clients)
        clients.append(mapping.map_and_sum(one, rows, clients_per_chunk=1)[0])
    joined = ()
    if jax.tree.leaves(clients):
        joined = jnp.full(int(first_ids[-1]), join == "initial")
    return FederatedState(servers, tuple(clients), jnp.zeros((), jnp.int32), key, joined)


def one_round(
    groups: Sequence[Group],
    state: FederatedState,
    buffers: Sequence[PyTree | None],
    examples: Sequence[Examples],
    num_rounds: jax.Array,
) -> tuple[FederatedState, tuple[PyTree | None, ...], dict[str, jax.Array]]:
    """Runs one round of all groups; call it inside `mapping.over_devices`.

    Args:
      groups: The groups.
      state: The state of the run.
      buffers: For each group, its buffer for remote clients.
      examples: For each group, the examples of its clients.
      num_rounds: `[]` int32, the planned length of the run.

    Returns:
      The next state, the buffers, and the metrics that `round.one_round` returns, over all groups.
    """
    first_ids, device = _first_ids(examples), mapping.device_index()
    parts = []
    for number, (group, own, first) in enumerate(zip(groups, examples, first_ids, strict=False)):
        key = streams.key_of(round.cohort_key(state.key, state.round), number)
        clients = state.clients[number]
        assignment, sizes = round.assigned_cohort(
            group.plan,
            key,
            own,
            group.clients_per_chunk,
            prefer_owner=bool(jax.tree.leaves(clients)),
        )
        ids = jnp.where(assignment < 0, -1, assignment + int(first))
        parts.append((assignment, ids, sizes))
    cohort = Cohort(
        jnp.concatenate([ids.reshape(-1) for _, ids, _ in parts]),
        jnp.concatenate([sizes for *_, sizes in parts]),
        int(first_ids[-1]),
    )

    shards, terms = [], []
    for number, (group, own) in enumerate(zip(groups, examples, strict=True)):
        assignment, ids, _ = parts[number]
        clients = migration.gather_states(state.clients[number], buffers[number], assignment)
        of_group = state._replace(server=state.server[number], clients=clients)
        shards.append((of_group, own, ids[device], assignment[device]))
        terms.append(
            round.prepare_clients(
                group.algorithm, group.clients_per_chunk, *shards[-1], cohort, num_rounds
            )
        )
    _require_one_structure(terms)
    prepared = functools.reduce(tree.add, terms)
    updates = [
        round.update_clients(
            group.algorithm, group.clients_per_chunk, prepared, *shard, cohort, num_rounds
        )
        for group, shard in zip(groups, shards, strict=True)
    ]
    each = [mapping.stack_over_devices(updated.each) for updated in updates]
    _require_one_structure(
        [
            (updated.total, jax.tree.map(lambda leaf: leaf[0], own), updated.metrics)
            for updated, own in zip(updates, each, strict=True)
        ]
    )
    total = updates[0].total
    sums = updates[0].metrics
    for other in updates[1:]:
        total, sums = tree.add(total, other.total), tree.add(sums, other.metrics)
    count = sum(updated.count for updated in updates)
    uploads = Uploads(total, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *each))

    servers, clients, new_buffers, bad, before = [], [], [], [], 0
    for number, (group, own) in enumerate(zip(groups, examples, strict=True)):
        of_group = state._replace(server=state.server[number])
        server = round.update_server(
            group.algorithm, of_group, prepared, uploads, cohort, num_rounds, count
        )
        assignment, ids, _ = parts[number]
        shard = assignment.shape[1]
        updated = round.exchange_clients(
            group.algorithm,
            group.clients_per_chunk,
            of_group._replace(server=server),
            updates[number],
            own,
            ids[device],
            assignment[device],
            before + device * shard + jnp.arange(shard),
            uploads,
            cohort,
            num_rounds,
        )
        servers.append(server)
        clients.append(migration.scatter_states(updated.states, assignment))
        new_buffers.append(updated.states.remote)
        bad.append(round.not_finite(updated, ids[device], server))
        before += ids.size

    metrics = round.metrics_of(sums)
    metrics["cohort"] = count
    metrics["examples"] = jnp.sum(cohort.sizes)
    metrics["slots"] = sum(
        round.slots(sizes, group.clients_per_chunk)
        for group, (*_, sizes) in zip(groups, parts, strict=True)
    )
    metrics["not_finite"] = jnp.max(jnp.stack(bad))
    state = FederatedState(
        tuple(servers),
        tuple(clients),
        state.round + 1,
        state.key,
        round.mark_joined(state.joined, cohort),
    )
    return state, tuple(new_buffers), metrics


def _require_one_structure(uploads: Sequence[PyTree]) -> None:
    """Raises a `UserError` where groups upload arrays of different shapes."""

    def form(upload):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), upload)

    for number, upload in enumerate(uploads):
        if form(upload) != form(uploads[0]):
            raise UserError(
                f"The clients of group {number} upload other arrays than those of group 0, so that "
                "nothing can be added up; give their models a common part that the method shares, "
                "or choose a method that shares no part of the model, such as fedproto."
            )


def run_rounds(
    groups: Sequence[Group],
    rounds_per_call: int,
    state: FederatedState,
    examples: Sequence[Examples],
    num_rounds: jax.Array,
    rounds_now: jax.Array,
) -> tuple[FederatedState, dict[str, jax.Array]]:
    """Runs `rounds_now` rounds of all groups on every device; see `build_rounds`."""

    def buffer(group, clients):
        shard = sampling.clients_per_device(
            group.plan.capacity, mapping.num_devices(), group.clients_per_chunk
        )
        return migration.receive_buffer(clients, shard)

    buffers = tuple(map(buffer, groups, state.clients))

    def run_one(state, buffers):
        return one_round(groups, state, buffers, examples, num_rounds)

    return round.repeat(run_one, rounds_per_call, state, buffers, rounds_now)


def evaluate_all(
    groups: Sequence[Group],
    batch_size: int,
    state: FederatedState,
    examples: Sequence[Examples],
    num_rounds: jax.Array,
) -> dict[str, dict[str, dict[str, jax.Array]]]:
    """Scores the clients of all groups, each on the device that owns it; see `build_evaluation`."""
    found = []
    for number, (group, own, first) in enumerate(
        zip(groups, examples, _first_ids(examples), strict=False)
    ):
        rows, count = on_device.owned_ids(own.num_clients), own.num_clients
        scores = evaluate.evaluate_rows(
            group.algorithm,
            group.task,
            batch_size,
            group.clients_per_chunk,
            state._replace(server=state.server[number], clients=state.clients[number]),
            own,
            jnp.where(rows < 0, -1, rows + int(first)),
            rows,
            count,
            num_rounds,
        )

        def by_id(leaf, rows=rows, count=count):
            """`[rows]` on each device -> `[clients of the group]`."""
            return mapping.stack_over_devices(leaf).reshape(-1, rows.shape[0]).T.reshape(-1)[:count]

        found.append(jax.tree.map(by_id, scores))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found)


def build_init(
    groups: Sequence[Group],
    *,
    join: str = "current",
    devices: Sequence[jax.Device] | None = None,
) -> mapping.Program:
    """Returns `(examples, key) -> state` of round 0, with examples as a tuple over the groups."""
    return mapping.over_devices(
        lambda examples, key: init_state(groups, join, examples, key),
        in_axes=(None, None),
        out_axes=mapping.STATE_AXES,
        devices=devices,
    )


def build_rounds(
    groups: Sequence[Group],
    *,
    rounds_per_call: int,
    devices: Sequence[jax.Device] | None = None,
) -> mapping.Program:
    """Returns `(state, examples, num_rounds, rounds_now) -> (state, metrics)` for all groups.

    Args:
      groups: The groups, whose methods upload arrays of one structure.
      rounds_per_call: Largest number of rounds that one call runs.
      devices: The devices to use; None means all.

    Raises:
      UserError: On a call: groups upload arrays of different shapes, or have held-out clients.
    """
    return mapping.over_devices(
        lambda *args: run_rounds(groups, rounds_per_call, *args),
        in_axes=(mapping.STATE_AXES, None, None, None),
        out_axes=(mapping.STATE_AXES, None),
        donate=(0,),
        devices=devices,
    )


def build_evaluation(
    groups: Sequence[Group],
    *,
    batch_size: int,
    devices: Sequence[jax.Device] | None = None,
) -> mapping.Program:
    """Returns `(state, examples, num_rounds) -> {model: {split: {metric: [clients]}}}`."""
    return mapping.over_devices(
        lambda *args: evaluate_all(groups, batch_size, *args),
        in_axes=(mapping.STATE_AXES, None, None),
        out_axes=None,
        devices=devices,
    )
