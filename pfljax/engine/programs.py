"""The three programs of a run: the first state, rounds, evaluation.

A method is built while its programs are traced, `make(frozen, values, server_data)`, so that frozen
parameters, numbers such as hyper-parameters and examples that the server holds are arguments of the
programs and not constants inside them.
Seeds, swept numbers and frozen parameters are one mechanism: a program serves a single run, or
several *vectorized* runs at once. The states of vectorized runs are stacked, `clients` as
`[devices, runs, rows, ...]` and all else as `[runs, ...]`; a single run has no such axis.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.core.algorithm import Algorithm
from pfljax.core.client_data import ClientData
from pfljax.core.types import FederatedState, PyTree, Task
from pfljax.engine import evaluate, init, mapping, round, sampling
from pfljax.engine.examples import Examples


class Federation(Protocol):
    """What programs run: a method for all clients, or one for each architecture of their models.

    Attributes:
      methods: The method for each architecture.
    """

    methods: tuple[Method, ...]

    def init_state(self, join: str, examples: Examples, key: jax.Array) -> FederatedState:
        """Returns the state of round 0, of the clients those that this device owns."""

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
        """Runs `rounds_now` rounds on every device; see `rounds_program`."""

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
        """Evaluates clients, each on the device that owns it; see `evaluation_program`."""


class Method(NamedTuple):
    """A `Federation` with one method for all clients.

    Attributes:
      algorithm: The method.
      task: The model, its loss and its metrics; None where nothing is evaluated.
    """

    algorithm: Algorithm
    task: Task | None = None

    @property
    def methods(self) -> tuple[Method, ...]:
        """This method alone."""
        return (self,)

    def init_state(self, *args: Any) -> FederatedState:
        """See `Federation.init_state`."""
        return init.init_state(self.algorithm, *args)

    def run_rounds(self, *args: Any) -> tuple[FederatedState, dict[str, jax.Array]]:
        """See `Federation.run_rounds`."""
        return round.run_rounds(self.algorithm, *args)

    def evaluate(self, *args: Any) -> PyTree:
        """See `Federation.evaluate`."""
        return evaluate.evaluate(self.algorithm, self.task, *args)


# `(frozen, {name: []}, server_data) -> Federation`, called while tracing with what `Inputs` has.
Make = Callable[[PyTree, dict[str, jax.Array], ClientData | None], Federation]


def always(algorithm: Algorithm, task: Task | None = None) -> Make:
    """Returns the `make` of a method that depends on none of the inputs."""
    return lambda frozen, values, server_data: Method(algorithm, task)


class Vectorized(NamedTuple):
    """How a program serves vectorized runs.

    Attributes:
      at_once: Number of runs that are vmapped, a divisor of their number; 1 runs one after the
        other, which suits a CPU.
      examples_vary: Whether each run has its own examples and its own server data, stacked;
        else all share them.
    """

    at_once: int = 1
    examples_vary: bool = False


class Inputs(NamedTuple):
    """Arguments of the programs beside states and examples, the same on every device.

    Attributes:
      frozen: Frozen parameters, or those with which training starts, shared by all runs: never
        donated, never in a state.
      values: `{name: []}`, numbers of the method; `{name: [runs]}` for vectorized runs.
      server_data: The examples that the server holds; None for none. Never in a state.
    """

    frozen: PyTree = ()
    values: dict[str, jax.Array] = {}
    server_data: ClientData | None = None


def _for_each(
    vectorized: Vectorized | None, function: Callable, examples, inputs: Inputs, *stacked
):
    """Returns `function(examples, method inputs, *stacked)` for a single run or each of several."""
    if vectorized is None:
        return function(examples, inputs, *stacked)

    def one(run):
        (own, server_data), values, *rest = run
        if not vectorized.examples_vary:
            own, server_data = examples, inputs.server_data
        return function(own, Inputs(inputs.frozen, values, server_data), *rest), ()

    data = (examples, inputs.server_data) if vectorized.examples_vary else ((), ())
    each = (data, inputs.values, *stacked)
    results, _ = mapping.map_and_sum(one, each, clients_per_chunk=vectorized.at_once)
    return results


def init_program(
    make: Make,
    *,
    join: str = "current",
    vectorized: Vectorized | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> mapping.Program:
    """Prepares the program that makes the state of round 0.

    Args:
      make: Builds the method.
      join: One of `init.JOINS`.
      vectorized: How the program serves vectorized runs; None for a single run.
      devices: The devices to use; None means all.

    Returns:
      `(examples, key, inputs) -> state`.
    """

    def program(examples, key, inputs):
        def one(examples, inputs, key):
            return make(*inputs).init_state(join, examples, key)

        return _for_each(vectorized, one, examples, inputs, key)

    return mapping.over_devices(
        program,
        in_axes=(None, None, None),
        out_axes=mapping.STATE_AXES,
        devices=devices,
        runs_once=True,
    )


def rounds_program(
    make: Make,
    plan: sampling.CohortPlan,
    *,
    clients_per_chunk: int,
    rounds_per_call: int,
    vectorized: Vectorized | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> mapping.Program:
    """Prepares the program that runs rounds.

    Args:
      make: Builds the method.
      plan: How cohorts are sampled; each run samples its own.
      clients_per_chunk: Number of clients that a device trains at once.
      rounds_per_call: Largest number of rounds that one call runs.
      vectorized: How the program serves vectorized runs; None for a single run.
      devices: The devices to use; None means all.

    Returns:
      `(state, examples, num_rounds, rounds_now, inputs) -> (state, metrics)`: runs `rounds_now`
      rounds (traced, so that any number up to `rounds_per_call` shares one program), reuses the
      memory of the state, and returns metrics `[rounds_per_call]`, zeros past `rounds_now`.
    """

    def program(state, examples, num_rounds, rounds_now, inputs):
        def one(examples, inputs, state):
            return make(*inputs).run_rounds(
                plan,
                clients_per_chunk,
                rounds_per_call,
                state,
                examples,
                num_rounds,
                rounds_now,
            )

        return _for_each(vectorized, one, examples, inputs, state)

    return mapping.over_devices(
        program,
        in_axes=(mapping.STATE_AXES, None, None, None, None),
        out_axes=(mapping.STATE_AXES, None),
        donate=(0,),
        devices=devices,
    )


def evaluation_program(
    make: Make,
    *,
    batch_size: int,
    clients_per_chunk: int,
    eval_ids: np.ndarray | None = None,
    of_client: evaluate.OfClient | None = None,
    vectorized: Vectorized | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> mapping.Program:
    """Prepares the program that evaluates all clients, or some.

    Args:
      make: Builds the method and its task.
      batch_size: Number of examples that are scored at once.
      clients_per_chunk: Number of clients that a device scores at once.
      eval_ids: Ids of the clients to score, fixed in the program; None for all.
      of_client: What the program finds out about a client, such as `evaluate.deployed`, with
        `eval_ids`.
      vectorized: How the program serves vectorized runs; None for a single run.
      devices: The devices to use; None means all.

    Returns:
      `(state, examples, num_rounds, inputs) -> {model: {split: {metric: [num_clients]}}}`, sums
      over each client's examples, and the values of `Task.client_metrics`; `[len(eval_ids)]`, in
      the order of `eval_ids`, where they are given.
    """

    def program(state, examples, num_rounds, inputs):
        def one(examples, inputs, state):
            return make(*inputs).evaluate(
                batch_size,
                clients_per_chunk,
                state,
                examples,
                num_rounds,
                eval_ids,
                of_client,
            )

        return _for_each(vectorized, one, examples, inputs, state)

    return mapping.over_devices(
        program,
        in_axes=(mapping.STATE_AXES, None, None, None),
        out_axes=None,
        devices=devices,
    )


class Bound:
    """A program whose last arguments are fixed; it is called with the others."""

    def __init__(self, program: mapping.Program, *fixed: Any):
        self._program, self._fixed = program, fixed

    def __call__(self, *args: Any) -> Any:
        return self._program(*args, *self._fixed)

    def with_fixed(self, *fixed: Any) -> Bound:
        """Returns the same program, compiled once for both, with other last arguments."""
        return Bound(self._program, *fixed)

    def compile(self, *args: Any) -> jax.stages.Compiled:
        """Compiles for the shapes of `args`, the first time; returns the compiled program."""
        return self._program.compile(*args, *self._fixed)

    def start_compiling(
        self, threads: concurrent.futures.Executor, *args: Any
    ) -> tuple[concurrent.futures.Future, PyTree]:
        """Compiles in a thread; see `mapping.Program.start_compiling`."""
        return self._program.start_compiling(threads, *args, *self._fixed)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Returns the program before XLA compiles it."""
        return self._program.lower(*args, *self._fixed)

    def trace(self, *args: Any) -> Any:
        """Returns the jaxpr of the program."""
        return self._program.trace(*args, *self._fixed)

    @property
    def compile_seconds(self) -> float:
        """Seconds of tracing, lowering and compiling; 0 before the first call."""
        return self._program.compile_seconds

    @property
    def compilations_in_threads(self) -> int:
        """Number of compilations in threads, 0 or 1; 0 before the first call."""
        return self._program.compilations_in_threads

    @property
    def device_bytes(self) -> int | None:
        """Bytes that a device needs, as XLA plans them; None before the first call."""
        return self._program.device_bytes


def build_init(algorithm: Algorithm, **options: Any) -> Bound:
    """Returns `(examples, key) -> state` for a method; the options are of `init_program`."""
    return Bound(init_program(always(algorithm), **options), Inputs())


def build_rounds(algorithm: Algorithm, plan: sampling.CohortPlan, **options: Any) -> Bound:
    """Returns `(state, examples, num_rounds, rounds_now) -> (state, metrics)` for a method.

    Args:
      algorithm: The method.
      plan: How cohorts are sampled.
      **options: Of `rounds_program`.
    """
    return Bound(rounds_program(always(algorithm), plan, **options), Inputs())


def build_evaluation(algorithm: Algorithm, task: Task, **options: Any) -> Bound:
    """Returns `(state, examples, num_rounds) -> scores` for a method.

    Args:
      algorithm: The method.
      task: The model and its metrics.
      **options: Of `evaluation_program`.
    """
    return Bound(evaluation_program(always(algorithm, task), **options), Inputs())


def unstack(states: FederatedState, index: int) -> FederatedState:
    """Returns the state of one run, in the form of a single run."""
    shared = jax.tree.map(lambda leaf: leaf[index], states._replace(clients=()))
    return shared._replace(clients=jax.tree.map(lambda leaf: leaf[:, index], states.clients))


def stack(states: Sequence[FederatedState]) -> FederatedState:
    """Returns the stacked states of single runs; the inverse of `unstack`."""
    shared = [state._replace(clients=()) for state in states]
    clients = [state.clients for state in states]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *shared)
    return stacked._replace(
        clients=jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *clients)
    )
