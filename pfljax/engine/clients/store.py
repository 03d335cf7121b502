"""What a run asks of the place where the states and the examples of its clients are kept."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from pfljax.core.types import FederatedState, Population
from pfljax.engine import programs, sampling
from pfljax.engine.examples import Examples


class Programs(NamedTuple):
    """The three programs of a run.

    Attributes:
      init: `(examples, key) -> state` of round 0.
      run_rounds: `(state, examples, num_rounds, rounds_now) -> (state, metrics)`.
      evaluate: `(state, examples, num_rounds) -> {model: {split: {metric: [clients]}}}`.
    """

    init: Callable
    run_rounds: Callable
    evaluate: Callable


class Options(NamedTuple):
    """What programs are compiled for.

    Attributes:
      plan: How cohorts are sampled.
      clients_per_chunk: Number of clients that a device trains at once.
      eval_clients_per_chunk: Number of clients that a device scores at once.
      eval_batch_size: Number of examples that are scored at once.
      rounds_per_call: Largest number of rounds that one call runs.
      join: One of `init.JOINS`.
      devices: The devices of the run.
      num_groups: Number of groups of clients with models of different architectures, see
        `engine.groups`; 1 without groups.
    """

    plan: sampling.CohortPlan
    clients_per_chunk: int
    eval_clients_per_chunk: int
    eval_batch_size: int
    rounds_per_call: int
    join: str
    devices: Sequence[jax.Device]
    num_groups: int = 1


class ClientStore(Protocol):
    """Keeps the private states and the examples of all clients.

    Attributes:
      eval_ids: `[n]`, the clients that evaluations score, in their order; None for all.
      keeps_snapshots: Whether `adopt` needs all snapshots that can still be resumed from, and not
        only the newest.
    """

    eval_ids: np.ndarray | None
    keeps_snapshots: bool

    def programs(
        self,
        make: programs.Make,
        inputs: programs.Inputs,
        vectorized: programs.Vectorized | None = None,
    ) -> Programs:
        """Returns the programs of a run, or of vectorized runs.

        Args:
          make: Builds the method.
          inputs: Frozen parameters and numbers, on the devices.
          vectorized: How a program serves vectorized runs; None for a single run.
        """

    def deployment(
        self, make: programs.Make, inputs: programs.Inputs, ids: np.ndarray
    ) -> programs.Bound:
        """Returns `(state, examples, num_rounds) -> {model: params}` for some clients of one run.

        Args:
          make: Builds the method.
          inputs: Frozen parameters and numbers, on the devices.
          ids: `[n]`, the clients, held-out ones included; params are stacked `[n, ...]` in their
            order. With groups, they belong to one of them.
        """

    def example_shapes(self) -> tuple[Population, Examples]:
        """Returns shapes of the population, and the examples of at least one client to trace."""

    def open(self, directory: pathlib.Path, *, overwrite: bool) -> None:
        """Uses files in a work directory from now on; `overwrite` replaces older ones."""

    def snapshot(self, state: FederatedState) -> FederatedState:
        """Returns the state to put into a checkpoint."""

    def like_snapshot(self, state: FederatedState) -> FederatedState:
        """Returns a state of the form that `snapshot` returns, for its shapes."""

    def to_host(self, state: FederatedState, num_clients: int) -> FederatedState:
        """Returns a snapshot as NumPy arrays, in a layout that does not depend on devices."""

    def to_devices(
        self, host: FederatedState, like: FederatedState, devices: Sequence[jax.Device]
    ) -> FederatedState:
        """Returns a snapshot from what `to_host` returned."""

    def damaged(self, snapshot: FederatedState) -> np.ndarray:
        """Returns the clients whose stored states are not as the snapshot left them."""

    def damaged_file(self, directory: pathlib.Path) -> pathlib.Path:
        """Returns the file that `damaged` checks."""

    def adopt(self, snapshots: Sequence[FederatedState]) -> FederatedState:
        """Returns the state to continue from, the last of the snapshots of an earlier run."""
