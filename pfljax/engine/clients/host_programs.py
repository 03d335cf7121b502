"""The programs of a population on the host, with the interface of those on the devices.

    devices  round r              | round r+1            | ...
    host     examples of r+1,     | examples of r+2,     |
             read states of r+1,  | read states of r+2,  |
             write states of r    | write states of r+1  |

One thread runs the host's work in this order. If a client of round r takes part in round r+1 too,
the states of r are written before those of r+1 are read. The computation on the devices is that of
`engine/round.py` and `engine/evaluate.py`: cohorts, and results to rounding, are those of a
population on the devices.
"""

from __future__ import annotations

import concurrent.futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from pfljax.core.types import Cohort, FederatedState, Population
from pfljax.engine import evaluate, init, mapping, programs, round, sampling, used_arguments
from pfljax.engine.clients import by_process, mmap_rows, on_device, store
from pfljax.engine.clients.host_examples import HostExamples
from pfljax.engine.clients.on_host import SHARD_AXES, HostShard, HostStates

_ALL = ("train", "validation", "test")


class _OnHost:
    """The properties of a host program that are those of its device program."""

    program: mapping.Program

    @property
    def compile_seconds(self) -> float:
        return self.program.compile_seconds

    @property
    def compilations_in_threads(self) -> int:
        return self.program.compilations_in_threads

    @property
    def device_bytes(self) -> int | None:
        return self.program.device_bytes


class HostInit(_OnHost):
    """`(examples, key, inputs) -> state` of round 0; no client state is read or written."""

    def __init__(self, clients: HostStates, make: programs.Make, inputs: programs.Inputs):
        self._of = clients
        shape = clients.population()
        key = jax.eval_shape(jax.random.key, 0)

        def server(key, inputs, sizes, counts):
            return init.init_server(make(*inputs).algorithm, Population(sizes, counts), key)

        # The labels of all clients are counted only if the method uses the counts.
        used = used_arguments.of_program(jax.make_jaxpr(server)(key, inputs, *shape))
        self._uses_counts = shape.class_counts is not None and used[-1]

        def first(key, sizes, counts, inputs):
            if counts is None and shape.class_counts is not None:
                counts = jnp.zeros(shape.class_counts.shape, jnp.int32)
            start = server(key, inputs, sizes, counts)
            return FederatedState(start, (), jnp.zeros((), jnp.int32), key)

        self.program = mapping.over_devices(
            first,
            in_axes=(None, None, None, None),
            out_axes=mapping.STATE_AXES,
            devices=clients.options.devices,
            runs_once=True,
        )

    def _arguments(self, examples: HostExamples, key: jax.Array) -> tuple:
        seen = slice(examples.num_participants)
        counts = examples.class_counts()[seen] if self._uses_counts else None
        return key, np.asarray(examples.sizes["train"][seen], np.int32), counts

    def compile(self, examples: HostExamples, key: jax.Array, inputs: programs.Inputs) -> Any:
        return self.program.compile(*self._arguments(examples, key), inputs)

    def __call__(
        self, examples: HostExamples, key: jax.Array, inputs: programs.Inputs
    ) -> FederatedState:
        state = self.program(*self._arguments(examples, key), inputs)
        # Rounds reuse the memory of the state that they receive.
        if self._of.options.join == "initial":
            self._of.initial_server = jax.tree.map(jnp.copy, state.server)
        return state._replace(clients=mmap_rows.new_table(examples.num_clients)[None])


class HostRounds(_OnHost):
    """`(state, examples, num_rounds, rounds_now, inputs) -> (state, metrics)`; see the module."""

    def __init__(self, clients: HostStates, make: programs.Make):
        self._of = clients
        plan, chunk = clients.options.plan, clients.options.clients_per_chunk
        self._capacity = clients.examples.capacity(clients.shard, ("train",))
        self._sample = jax.jit(
            lambda key, number: sampling.sample(plan, round.cohort_key(key, number))
        )
        self._assign_here = jax.jit(
            lambda ids, sizes: sampling.assign(
                ids,
                sizes,
                num_devices=clients.devices_here,
                chunk=chunk,
            )
        )

        def one_round(state, initial, shard, num_rounds, inputs):
            algorithm = make(*inputs).algorithm
            states, rows = clients.rows_of(algorithm, shard, state, initial)
            cohort = Cohort(shard.ids.reshape(-1), shard.sizes.reshape(-1), plan.num_clients)
            after, metrics = round.train_cohort(
                algorithm,
                chunk,
                state._replace(clients=on_device.all_owned(states, rows)),
                shard.examples,
                rows,
                cohort,
                num_rounds,
            )
            return after._replace(clients=()), clients.encode(after.clients.owned), metrics

        self.program = mapping.over_devices(
            one_round,
            in_axes=(mapping.STATE_AXES, None, SHARD_AXES, None, None),
            out_axes=(mapping.STATE_AXES, 0, None),
            donate=(0,),
            devices=clients.options.devices,
        )

    def _cohorts(self, key: jax.Array, first: int, count: int) -> list[np.ndarray]:
        """Returns the assigned ids of several rounds, `[devices, shard]` each.

        Each process assigns its clients to its devices; all processes compute all assignments.
        """
        host = jax.local_devices(backend="cpu")[0]
        key = jax.device_put(jax.random.wrap_key_data(np.asarray(jax.random.key_data(key))), host)
        with jax.default_device(host):
            drawn = [np.asarray(self._sample(key, np.int32(first + i))) for i in range(count)]
            return [self._assign(ids) for ids in drawn]

    def _assign(self, cohort: np.ndarray) -> np.ndarray:
        """Assigns a cohort to devices; returns `[devices, shard]`."""
        kept = by_process.group_by_process(cohort, self._of.num_processes, self._of.capacity)
        return np.concatenate([self._assign_here(ids, self._of.sizes_of(ids)) for ids in kept])

    def compile(
        self, state: FederatedState, examples, num_rounds, rounds_now, inputs: programs.Inputs
    ) -> Any:
        (ids,) = self._cohorts(state.key, int(state.round), 1)
        shard = self._of.fetch(state.clients[0], ids, ("train",), self._capacity)
        return self.program.compile(
            state._replace(clients=()), self._of.initial_server, shard, num_rounds, inputs
        )

    def __call__(
        self,
        state: FederatedState,
        examples: HostExamples,
        num_rounds,
        rounds_now,
        inputs: programs.Inputs,
    ) -> tuple[FederatedState, dict[str, np.ndarray]]:
        table, now = state.clients[0], int(rounds_now)
        cohorts = self._cohorts(state.key, int(state.round), now)
        state, history, stored = state._replace(clients=()), [], []

        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            sought = thread.submit(self._of.examples_for, cohorts[0], ("train",), self._capacity)
            fetched = thread.submit(self._of.clients_for, table, cohorts[0])
            for ids, later in zip(cohorts, [*cohorts[1:], None], strict=True):
                sizes = self._of.sizes_of(ids)
                shard = HostShard(ids, sizes, *fetched.result(), sought.result())
                state, clients, metrics = self.program(
                    state, self._of.initial_server, shard, num_rounds, inputs
                )
                history.append(metrics)
                if later is None:
                    stored.append(thread.submit(self._of.put_back, table, ids, clients))
                    break
                sought = thread.submit(self._of.examples_for, later, ("train",), self._capacity)
                again = np.isin(ids[ids >= 0], later).any()
                if again:
                    stored.append(thread.submit(self._of.put_back, table, ids, clients))
                fetched = thread.submit(self._of.clients_for, table, later)
                if not again:
                    stored.append(thread.submit(self._of.put_back, table, ids, clients))
            for each in stored:
                each.result()
        history = jax.tree.map(lambda *values: np.stack(values), *history)
        return state._replace(clients=table[None]), history


class HostEvaluation(_OnHost):
    """`(state, examples, num_rounds, inputs) -> {model: {split: {metric: [clients]}}}`."""

    def __init__(
        self,
        clients: HostStates,
        make: programs.Make,
        eval_ids: np.ndarray | None,
        of_client: evaluate.OfClient | None = None,
    ):
        self._of = clients
        count = clients.examples.num_clients
        self.ids = np.arange(count) if eval_ids is None else eval_ids
        self._capacity = clients.examples.capacity(clients.shard, _ALL)

        def scores(state, initial, shard, num_rounds, inputs):
            algorithm, task = make(*inputs)
            states, rows = clients.rows_of(algorithm, shard, state, initial)
            return evaluate.evaluate_rows(
                algorithm,
                task,
                clients.options.eval_batch_size,
                clients.options.clients_per_chunk,
                state._replace(clients=states),
                shard.examples,
                shard.ids[mapping.device_index()],
                rows,
                count,
                num_rounds,
                of_client,
            )

        self.program = mapping.over_devices(
            scores,
            in_axes=(mapping.STATE_AXES, None, SHARD_AXES, None, None),
            out_axes=0,
            devices=clients.options.devices,
        )

    def _parts(self) -> np.ndarray:
        """Returns `[parts, devices, shard]`, the evaluated clients, in parts as for training."""
        ids, num_processes = np.asarray(self.ids, np.int32), self._of.num_processes
        at_a_time = self._of.shard * self._of.devices_here
        most = int(np.bincount(ids % num_processes).max())
        rows = -(-most // at_a_time) * at_a_time
        kept = by_process.group_by_process(ids, num_processes, rows)
        return (
            kept.reshape(num_processes, -1, at_a_time)
            .swapaxes(0, 1)
            .reshape(-1, len(self._of.options.devices), self._of.shard)
        )

    def _in_order(self, parts: np.ndarray, found: Any) -> Any:
        """Returns the scores `[parts, devices here, shard]` of all processes, ordered by `ids`."""
        if self._of.num_processes > 1:
            found = multihost_utils.process_allgather(found)

            def of_all(leaf):
                """`[processes, parts, devices of one, shard, ...]` -> `[parts, devices, ...]`."""
                leaf = np.asarray(leaf).swapaxes(0, 1)
                return leaf.reshape(leaf.shape[0], -1, *leaf.shape[3:])

            found = jax.tree.map(of_all, found)
        row = np.argsort(parts.reshape(-1), kind="stable")[-len(self.ids) :]
        order = np.argsort(np.argsort(self.ids, kind="stable"), kind="stable")
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[3:])[row][order], found)

    def compile(self, state: FederatedState, examples, num_rounds, inputs: programs.Inputs) -> Any:
        shard = self._of.fetch(state.clients[0], self._parts()[0], _ALL, self._capacity)
        return self.program.compile(
            state._replace(clients=()), self._of.initial_server, shard, num_rounds, inputs
        )

    def __call__(
        self, state: FederatedState, examples: HostExamples, num_rounds, inputs: programs.Inputs
    ) -> Any:
        table, state = state.clients[0], state._replace(clients=())
        parts, found = self._parts(), []
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            coming = thread.submit(self._of.fetch, table, parts[0], _ALL, self._capacity)
            for later in [*parts[1:], None]:
                shard = coming.result()
                if later is not None:
                    coming = thread.submit(self._of.fetch, table, later, _ALL, self._capacity)
                scores = self.program(state, self._of.initial_server, shard, num_rounds, inputs)
                found.append(jax.tree.map(np.asarray, scores))
        return self._in_order(parts, jax.tree.map(lambda *leaves: np.stack(leaves), *found))


class HostStore(HostStates):
    """The `ClientStore` of clients on the host."""

    def programs(
        self,
        make: programs.Make,
        inputs: programs.Inputs,
        vectorized: programs.Vectorized | None = None,
    ) -> store.Programs:
        """See `ClientStore.programs`; vectorized runs are not supported on the host."""
        if vectorized is not None:
            raise ValueError("Clients on the host cannot be trained by vectorized runs.")

        self.client = jax.eval_shape(
            lambda inputs, population: init.first_states(make(*inputs).algorithm, population)[1],
            inputs,
            self.population(),
        )
        return store.Programs(
            programs.Bound(HostInit(self, make, inputs), inputs),
            programs.Bound(HostRounds(self, make), inputs),
            programs.Bound(HostEvaluation(self, make, self.eval_ids), inputs),
        )

    def deployment(
        self, make: programs.Make, inputs: programs.Inputs, ids: np.ndarray
    ) -> programs.Bound:
        """See `ClientStore.deployment`."""
        return programs.Bound(HostEvaluation(self, make, ids, evaluate.deployed), inputs)
