"""Groups of clients with models of different architectures in one run.

Client `i` belongs to group `i % G` of `G` groups, each with models of one architecture. The method
is built for the task of each group. What the clients upload has one structure in all groups, such
as prototypes or the change of a common body, and is added up over all of them. The server keeps a
state for each group. The arrays that its update changes are shared: they have the same values in
all groups. The others, such as the initial params of a model, differ from group to group.

In the state of such a run `server` and `clients` are tuples with an item for each group.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.core import tree
from pfljax.core.algorithm import Algorithm
from pfljax.core.client_data import ClientData
from pfljax.core.types import Cohort, FederatedState, Population, PyTree, Uploads
from pfljax.engine import evaluate, init, mapping, round, sampling, used_arguments
from pfljax.engine.clients import migration, on_device
from pfljax.engine.examples import Examples
from pfljax.engine.programs import Method
from pfljax.errors import UserError


def members(number: int, num_groups: int, num_clients: int) -> np.ndarray:
    """Returns `[n]` int32, the ids of the clients of a group, in the order of their rows.

    Example:
      >>> members(1, 3, 8)
      array([1, 4, 7], dtype=int32)
    """
    return np.arange(number, num_clients, num_groups, dtype=np.int32)


def ids_of(rows: jax.Array, number: int, num_groups: int) -> jax.Array:
    """Returns the ids of the clients at `rows` of a group, of any shape; -1 is padding."""
    return jnp.where(rows < 0, -1, rows * num_groups + number)


class Exchanged(NamedTuple):
    """What the clients of a method exchange with the server, as shapes and dtypes.

    Attributes:
      messages: What is added up or stacked over the cohort: the result of `prepare`,
        `ClientOutput.sum`, `ClientOutput.each`, and the names of the metrics.
      shared: `{path: shape and dtype}`, the arrays of the server's state that its update changes.
    """

    messages: PyTree
    shared: dict[str, jax.ShapeDtypeStruct]


def exchanged(algorithm: Algorithm, population: Population, data: ClientData) -> Exchanged:
    """Traces one round of a method, and returns what its clients exchange.

    Args:
      algorithm: The method.
      population: The profiles of all clients, or their shapes.
      data: A client's examples, or their shapes.
    """
    messages, server, changed = used_arguments.messages_and_changes(algorithm, population, data)
    paths = jax.tree_util.tree_leaves_with_path(server)
    shared = {
        jax.tree_util.keystr(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for (path, leaf), is_changed in zip(paths, changed, strict=True)
        if is_changed
    }
    return Exchanged(messages, shared)


def with_shared(server: PyTree, first: PyTree, shared: Sequence[str]) -> PyTree:
    """Returns the server's state of a group with the shared arrays of the first group.

    Args:
      server: The state of the group.
      first: The state of the first group.
      shared: The paths of the shared arrays in both.

    Raises:
      UserError: The state lacks one of them, or has it with another shape.
    """
    found = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(first)
    }
    own = {
        jax.tree_util.keystr(path): (leaf.shape, leaf.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(server)
    }
    for path in shared:
        if own.get(path) != (found[path].shape, found[path].dtype):
            raise UserError(
                f"The server changes the array {path} of its state, which is another one for "
                "another architecture, so that the clients cannot share it; choose a method that "
                "exchanges no such part of the model, such as fedproto."
            )

    def choose(path, leaf):
        name = jax.tree_util.keystr(path)
        return found[name] if name in shared else leaf

    return jax.tree_util.tree_map_with_path(choose, server)


class Groups(NamedTuple):
    """What programs run for clients with models of different architectures, see `Method`.

    Attributes:
      methods: The method and the task of each group.
    """

    methods: tuple[Method, ...]

    def init_state(self, join: str, examples: Examples, key: jax.Array) -> FederatedState:
        """Returns the state of round 0, of the clients those that this device owns."""
        count = examples.num_clients
        servers = self._servers(examples, key)
        clients = []
        for number, (method, server) in enumerate(zip(self.methods, servers, strict=True)):

            def one(row, number=number, method=method, server=server):
                profile = examples.profile(ids_of(row, number, len(self.methods)))
                return init.init_client(method.algorithm, server, profile, key), ()

            rows = on_device.owned_ids(len(members(number, len(self.methods), count)))
            clients.append(mapping.map_and_sum(one, rows, clients_per_chunk=1)[0])
        joined = ()
        if jax.tree.leaves(clients):
            joined = jnp.full(count, join == "initial")
        return FederatedState(servers, tuple(clients), jnp.zeros((), jnp.int32), key, joined)

    def _servers(self, examples: Examples, key: jax.Array) -> tuple[PyTree, ...]:
        """Returns the initial state of the server for each group, with equal shared arrays."""
        population = examples.population()
        first, *others = (
            init.init_server(method.algorithm, population, key) for method in self.methods
        )
        shared = self._shared(examples)
        return first, *(with_shared(server, first, shared) for server in others)

    def _shared(self, examples: Examples) -> list[str]:
        population, data = examples.population(), examples.of_client(jnp.int32(0))
        return list(exchanged(self.methods[0].algorithm, population, data).shared)

    def run_rounds(
        self,
        plan: sampling.CohortPlan,
        clients_per_chunk: int,
        rounds_per_call: int,
        state: FederatedState,
        examples: Examples,
        num_rounds: jax.Array,
        rounds_now: jax.Array,
    ) -> tuple[FederatedState, dict[str, jax.Array]]:
        """Runs `rounds_now` rounds on every device; see `programs.rounds_program`."""
        shared = self._shared(examples)
        each = [
            _Part(number, len(self.methods), plan, clients_per_chunk, mapping.num_devices())
            for number in range(len(self.methods))
        ]
        buffers = tuple(
            migration.receive_buffer(clients, part.shard)
            for clients, part in zip(state.clients, each, strict=True)
        )

        @mapping.traced_once
        def run_one(state, buffers):
            return _one_round(self, each, shared, plan, state, buffers, examples, num_rounds)

        return round.repeat(run_one, rounds_per_call, state, buffers, rounds_now)

    def evaluate(
        self,
        batch_size: int,
        clients_per_chunk: int,
        state: FederatedState,
        examples: Examples,
        num_rounds: jax.Array,
        eval_ids: np.ndarray | None = None,
        of_client: evaluate.OfClient | None = None,
    ) -> PyTree:
        """Evaluates clients, each on the device that owns it; see `programs.evaluation_program`.

        With an `of_client` whose results depend on the architecture, all `eval_ids` must belong to
        one group.
        """
        wanted = np.arange(examples.num_clients) if eval_ids is None else np.asarray(eval_ids)
        found, evaluated = [], []
        for number, method in enumerate(self.methods):
            chosen = wanted[wanted % len(self.methods) == number]
            if not chosen.size:
                continue
            scores = evaluate.evaluate(
                *method,
                batch_size,
                min(clients_per_chunk, -(-chosen.size // mapping.num_devices())),
                state._replace(server=state.server[number], clients=state.clients[number]),
                examples,
                num_rounds,
                None if eval_ids is None else chosen,
                of_client,
                members(number, len(self.methods), examples.num_clients),
            )
            found.append(scores)
            evaluated.append(chosen)
        by_group = np.concatenate(evaluated)
        order = np.argsort(by_group)
        positions = order[np.searchsorted(by_group[order], wanted)]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[positions], *found)


class _Part(NamedTuple):
    """The part of a group in a cohort (static).

    Attributes:
      number: The number of the group.
      num_groups: Number of groups.
      plan: How the cohort of all groups is sampled.
      most_per_chunk: The maximum number of clients that a device trains at once.
      num_devices: Number of devices.
    """

    number: int
    num_groups: int
    plan: sampling.CohortPlan
    most_per_chunk: int
    num_devices: int

    @property
    def capacity(self) -> int:
        """The maximum number of clients of the group in a cohort."""
        participants = len(members(self.number, self.num_groups, self.plan.num_clients))
        return min(self.plan.capacity, participants)

    @property
    def clients_per_chunk(self) -> int:
        """Number of clients that a device trains at once."""
        return min(self.most_per_chunk, -(-self.capacity // self.num_devices))

    @property
    def shard(self) -> int:
        """Number of clients of the group that a device trains in a round, padding included."""
        return sampling.clients_per_device(self.capacity, self.num_devices, self.clients_per_chunk)

    def assign(self, sampled: jax.Array, examples: Examples, *, prefer_owner: bool) -> jax.Array:
        """Returns `[devices, shard]` int32, the rows of the clients that each device trains.

        Args:
          sampled: `[cohort]` int32, the ids of the clients of all groups; -1 is padding.
          examples: The examples of all clients.
          prefer_owner: See `sampling.assign`.
        """
        chosen = (sampled >= 0) & (sampled % self.num_groups == self.number)
        first = jnp.argsort(~chosen)[: self.capacity]
        ids = jnp.where(chosen, sampled, -1)[first]
        return sampling.assign(
            jnp.where(ids < 0, -1, ids // self.num_groups),
            _sizes(examples, ids),
            num_devices=self.num_devices,
            chunk=self.clients_per_chunk,
            prefer_owner=prefer_owner,
        )


def _sizes(examples: Examples, ids: jax.Array) -> jax.Array:
    """Returns the numbers of training examples of clients; 0 for padding."""
    return jnp.where(ids < 0, 0, examples.sizes["train"][jnp.maximum(ids, 0)])


def _one_round(
    groups: Groups,
    parts: Sequence[_Part],
    shared: Sequence[str],
    plan: sampling.CohortPlan,
    state: FederatedState,
    buffers: Sequence[PyTree | None],
    examples: Examples,
    num_rounds: jax.Array,
) -> tuple[FederatedState, tuple[PyTree | None, ...], dict[str, jax.Array]]:
    """Runs one round of all groups on every device.

    Args:
      groups: The groups.
      parts: The part of each group in a cohort.
      shared: The paths of the server's arrays that are shared.
      plan: How the cohort of all groups is sampled.
      state: The state of the run.
      buffers: For each group, its buffer for remote clients.
      examples: The examples of all clients.
      num_rounds: `[]` int32, the planned length of the run.

    Returns:
      The next state, the buffers, and the metrics that `round.one_round` returns, over all groups.
    """
    device = mapping.device_index()
    sampled = sampling.sample(plan, round.cohort_key(state.key, state.round))
    assignments, ids = [], []
    for part, clients in zip(parts, state.clients, strict=True):
        prefer_owner = bool(jax.tree.leaves(clients))
        assignments.append(part.assign(sampled, examples, prefer_owner=prefer_owner))
        ids.append(ids_of(assignments[-1], part.number, part.num_groups))
    of_all = jnp.concatenate([one.reshape(-1) for one in ids])
    cohort = Cohort(of_all, _sizes(examples, of_all), plan.num_clients)

    # The groups exchange their states one after the other, and all other collectives of the round
    # run between these exchanges and those at its end.
    gathered, remote = [], []
    for clients, buffer, assignment in zip(state.clients, buffers, assignments, strict=True):
        gathered.append(migration.gather_states(clients, buffer, assignment, after=remote))
        remote.append(gathered[-1].remote)
    # The examples are those of all clients, so that the row of a client in them is its id.
    mine = [mapping.after(own[device], remote) for own in ids]
    shards = [
        (state._replace(server=server, clients=clients), examples, rows, rows, cohort, num_rounds)
        for server, clients, rows in zip(state.server, gathered, mine, strict=True)
    ]
    terms = [
        round.prepare_clients(method.algorithm, part.clients_per_chunk, *shard)
        for method, part, shard in zip(groups.methods, parts, shards, strict=True)
    ]
    _require_one_structure(terms)
    prepared = functools.reduce(tree.add, terms)
    updates = [
        round.update_clients(method.algorithm, part.clients_per_chunk, prepared, *shard)
        for method, part, shard in zip(groups.methods, parts, shards, strict=True)
    ]
    each = [mapping.stack_over_devices(updated.each) for updated in updates]
    _require_one_structure(
        [
            (updated.total, jax.tree.map(lambda leaf: leaf[0], own), updated.metrics)
            for updated, own in zip(updates, each, strict=True)
        ]
    )
    total = functools.reduce(tree.add, [updated.total for updated in updates])
    sums = functools.reduce(tree.add, [updated.metrics for updated in updates])
    count = sum(updated.count for updated in updates)
    uploads = Uploads(total, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *each))

    # All groups would take the same step, as the shared arrays and the uploads are the same.
    first = round.update_server(
        groups.methods[0].algorithm,
        state._replace(server=state.server[0]),
        prepared,
        uploads,
        cohort,
        num_rounds,
        count,
    )
    servers = (first, *(with_shared(server, first, shared) for server in state.server[1:]))

    exchanged, bad, before = [], [], 0
    for method, part, shard, updated, server, assignment in zip(
        groups.methods, parts, shards, updates, servers, assignments, strict=True
    ):
        of_group, _, rows, *_ = shard
        updated = round.exchange_clients(
            method.algorithm,
            part.clients_per_chunk,
            of_group._replace(server=server),
            updated,
            examples,
            rows,
            rows,
            before + device * part.shard + jnp.arange(part.shard),
            uploads,
            cohort,
            num_rounds,
        )
        exchanged.append(updated.states)
        bad.append(round.not_finite(updated, rows, server))
        before += assignment.size

    metrics = round.metrics_of(sums)
    metrics["cohort"] = count
    metrics["examples"] = jnp.sum(cohort.sizes)
    metrics["slots"] = sum(
        round.slots(_sizes(examples, own.reshape(-1)), part.clients_per_chunk)
        for part, own in zip(parts, ids, strict=True)
    )
    metrics["not_finite"] = jnp.max(jnp.stack(bad))
    clients: list[PyTree] = []
    for states, assignment in zip(exchanged, assignments, strict=True):
        after = servers, metrics, clients
        clients.append(migration.scatter_states(states, assignment, after=after))
    joined = round.mark_joined(state.joined, cohort)
    buffers = tuple(states.remote for states in exchanged)
    state = FederatedState(servers, tuple(clients), state.round + 1, state.key, joined)
    return state, buffers, metrics


def _require_one_structure(messages: Sequence[PyTree]) -> None:
    """Raises a `UserError` where groups exchange arrays of different shapes."""

    def form(message):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), message)

    for number, message in enumerate(messages):
        if form(message) != form(messages[0]):
            raise UserError(
                f"The clients of group {number} upload other arrays than those of group 0, so that "
                "nothing can be added up; give their models a common part that the method shares, "
                "or choose a method that shares no part of the model, such as fedproto."
            )
