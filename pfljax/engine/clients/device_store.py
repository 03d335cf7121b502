"""The `ClientStore` of clients on devices."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from pfljax.core.types import FederatedState, Population
from pfljax.engine import evaluate, programs
from pfljax.engine.clients import on_device, store
from pfljax.engine.examples import Examples


class DeviceStore:
    """Private states sharded over the devices, and examples on every device.

    Args:
      examples: The examples of all clients; stacked if they differ between runs.
      options: The settings for which programs are compiled.
      eval_ids: `[n]`, the evaluated clients; None for all.
      examples_vary: Whether the examples are stacked.
    """

    keeps_snapshots = False

    def __init__(
        self,
        examples: Examples,
        options: store.Options,
        *,
        eval_ids: np.ndarray | None = None,
        examples_vary: bool = False,
    ):
        self.examples, self.options, self.eval_ids = examples, options, eval_ids
        self._examples_vary = examples_vary

    def programs(
        self,
        make: programs.Make,
        inputs: programs.Inputs,
        vectorized: programs.Vectorized | None = None,
    ) -> store.Programs:
        """See `ClientStore.programs`."""
        options = self.options
        shared = {"vectorized": vectorized, "devices": options.devices}
        init = programs.init_program(make, join=options.join, **shared)
        rounds = programs.rounds_program(
            make,
            options.plan,
            clients_per_chunk=options.clients_per_chunk,
            rounds_per_call=options.rounds_per_call,
            **shared,
        )
        evaluation = programs.evaluation_program(
            make,
            batch_size=options.eval_batch_size,
            clients_per_chunk=options.eval_clients_per_chunk,
            eval_ids=self.eval_ids,
            **shared,
        )
        return store.Programs(
            *(programs.Bound(program, inputs) for program in (init, rounds, evaluation))
        )

    def deployment(
        self, make: programs.Make, inputs: programs.Inputs, ids: np.ndarray
    ) -> programs.Bound:
        """See `ClientStore.deployment`."""
        program = programs.evaluation_program(
            make,
            batch_size=self.options.eval_batch_size,
            clients_per_chunk=1,
            eval_ids=ids,
            of_client=evaluate.deployed,
            devices=self.options.devices,
        )
        return programs.Bound(program, inputs)

    def example_shapes(self) -> tuple[Population, Examples]:
        """See `ClientStore.example_shapes`."""
        examples = self.examples
        if self._examples_vary:
            examples = jax.tree.map(lambda leaf: leaf[0], examples)
        return jax.eval_shape(lambda examples: examples.population(), examples), examples

    def open(self, directory: pathlib.Path, *, overwrite: bool) -> None:
        """Does nothing: checkpoints contain the private states."""

    def snapshot(self, state: FederatedState) -> FederatedState:
        """Returns the state itself."""
        return state

    def like_snapshot(self, state: FederatedState) -> FederatedState:
        """Returns the state itself."""
        return state

    def to_host(self, state: FederatedState, num_clients: int) -> FederatedState:
        """See `ClientStore.to_host`."""
        return on_device.to_host(state, num_clients, self.options.num_groups)

    def to_devices(
        self, host: FederatedState, like: FederatedState, devices: Sequence[jax.Device]
    ) -> FederatedState:
        """See `ClientStore.to_devices`."""
        return on_device.to_devices(host, like, devices)

    def damaged(self, snapshot: FederatedState) -> np.ndarray:
        """Returns no client: a checkpoint verifies its arrays itself."""
        return np.zeros(0, np.int32)

    def damaged_file(self, directory: pathlib.Path) -> pathlib.Path:
        """Returns the directory of the checkpoints."""
        return directory / "checkpoints"

    def adopt(self, snapshots: Sequence[FederatedState]) -> FederatedState:
        """Returns the last of the snapshots."""
        return snapshots[-1]
