"""Several variants of one run in one program: seeds, and values of hyper-parameters.

All variants train the same method; each has a key and hyper-parameters of its own, which are
traced, and perhaps examples of its own, so that they share one compilation. The states of the
variants are stacked: `clients` are `[devices, variants, rows, ...]`, all else `[variants, ...]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.core.types import Algorithm, FederatedState, Task
from pfljax.engine import evaluate, init, mapping, round, sampling


class Programs(NamedTuple):
    """The three programs of a run; `values` are `{name: [variants]}`.

    Attributes:
      start: `(examples, keys, values) -> states`.
      run_rounds: `(states, examples, num_rounds, rounds_now, values) -> (states, metrics)`,
        metrics `[variants, rounds_per_call]`.
      evaluate: `(states, examples, num_rounds, values) -> scores`, `[variants, num_clients]`.
    """

    start: Callable
    run_rounds: Callable
    evaluate: Callable


def build_vectorized(
    make: Callable[[dict[str, jax.Array]], Algorithm],
    task: Task,
    plan: sampling.CohortPlan,
    *,
    clients_per_chunk: int,
    eval_clients_per_chunk: int,
    eval_batch_size: int,
    rounds_per_call: int,
    together: int,
    join: str = "current",
    examples_vary: bool = False,
    eval_ids: np.ndarray | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Programs:
    """Prepares `build_start`, `build_rounds` and `build_evaluation` for several variants at once.

    Args:
      make: `{name: []} -> the method with these hyper-parameters`, called while tracing.
      task: model and metrics.
      plan: how cohorts are chosen; each variant draws its own.
      clients_per_chunk: how many clients a device trains together.
      eval_clients_per_chunk: how many it scores together.
      eval_batch_size: examples scored together.
      rounds_per_call: the most rounds that one call may run.
      together: how many variants are vmapped, a divisor of their number; 1 takes one after the
        other, which suits a CPU.
      join: one of `start.JOINS`.
      examples_vary: each variant has examples of its own, stacked; else all share them.
      eval_ids: Ids of the clients to score, the same for all variants; None for all.
      devices: the devices to use; None means all.
    """
    axes = mapping.STATE_AXES

    def for_each(function, examples, *stacked):
        """Calls `function(examples, *variant)` for each variant."""

        def one(variant):
            own, *rest = variant
            return function(own if examples_vary else examples, *rest), ()

        stacked = (examples if examples_vary else (), *stacked)
        results, _ = mapping.map_and_sum(one, stacked, clients_per_chunk=together)
        return results

    def start_all(examples, keys, values):
        def start_one(examples, key, value):
            return init.init_state(make(value), join, examples, key)

        return for_each(start_one, examples, keys, values)

    def run_all(states, examples, num_rounds, rounds_now, values):
        def run_one(examples, state, value):
            rounds = (plan, clients_per_chunk, rounds_per_call)
            return round.run_rounds(make(value), *rounds, state, examples, num_rounds, rounds_now)

        return for_each(run_one, examples, states, values)

    def evaluate_all(states, examples, num_rounds, values):
        def evaluate_one(examples, state, value):
            batches = (eval_batch_size, eval_clients_per_chunk)
            return evaluate.evaluate(
                make(value), task, *batches, state, examples, num_rounds, eval_ids
            )

        return for_each(evaluate_one, examples, states, values)

    return Programs(
        mapping.over_devices(start_all, in_axes=(None,) * 3, out_axes=axes, devices=devices),
        mapping.over_devices(
            run_all,
            in_axes=(axes, None, None, None, None),
            out_axes=(axes, None),
            donate=(0,),
            devices=devices,
        ),
        mapping.over_devices(
            evaluate_all, in_axes=(axes, None, None, None), out_axes=None, devices=devices
        ),
    )


def unstack(states: FederatedState, index: int) -> FederatedState:
    """Returns the state of one variant, in the form that a run of its own would have."""
    shared = jax.tree.map(lambda leaf: leaf[index], states._replace(clients=()))
    return shared._replace(clients=jax.tree.map(lambda leaf: leaf[:, index], states.clients))


def stack(states: Sequence[FederatedState]) -> FederatedState:
    """The inverse of `one_of`: stacks the states of runs of their own."""
    shared = [state._replace(clients=()) for state in states]
    clients = [state.clients for state in states]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *shared)
    return stacked._replace(
        clients=jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *clients)
    )
