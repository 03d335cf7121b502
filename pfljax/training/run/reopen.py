"""Reopens runs: their experiment, their state, and the models of their clients."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from pfljax.core import FederatedState, Params
from pfljax.errors import UserError
from pfljax.training.run import checkpoint, locks, loop, results, workdir, writers
from pfljax.training.run.checkpoint import Checkpoints, Restored
from pfljax.training.study import experiment as experiment_lib
from pfljax.training.study.config_runs import planned_rounds
from pfljax.training.study.experiment import Experiment


class Reopened(NamedTuple):
    """A run at its latest checkpoint, or at that of its best round.

    Attributes:
      experiment: The experiment of the run.
      state: The state, as the programs of the experiment take it.
    """

    experiment: Experiment
    state: FederatedState

    @property
    def round(self) -> int:
        """Number of finished rounds."""
        return int(np.asarray(self.state.round))

    def evaluate(self) -> dict[str, Any]:
        """Returns `{model: {split: {metric: [clients]}}}`, sums over each client's examples."""
        found = self.experiment.programs.evaluate(
            self.state, self.experiment.examples, self._num_rounds
        )
        return jax.tree.map(np.asarray, found)

    def deployed(self, clients: Sequence[int]) -> dict[str, Params]:
        """Returns the models that clients would deploy.

        Args:
          clients: `n` different ids of clients, held-out ones included, whose models have one
            architecture.

        Returns:
          `{model: params}`, stacked `[n, ...]`; model is 'personal' and, if the method has one,
          'global'.
        """
        built = self.experiment
        ids = np.asarray(clients, np.int32)
        program = built.store.deployment(built.make, built.inputs, ids)
        return jax.tree.map(np.asarray, program(self.state, built.examples, self._num_rounds))

    @property
    def _num_rounds(self) -> np.int32:
        return np.int32(planned_rounds(self.experiment.config))


@contextlib.contextmanager
def reopen(
    directory: pathlib.Path,
    config: ml_collections.ConfigDict | None = None,
    *,
    best: bool = False,
) -> Iterator[Reopened]:
    """Opens the run in a work directory, which is locked within this context.

    Args:
      directory: The work directory.
      config: The config of the run; None to read it from the directory. Its data set can be loaded.
      best: Whether to use the checkpoint of the round with the best validation score, which
        `config.keep_best` keeps, in place of the latest one.

    Raises:
      UserError: The directory contains no such intact checkpoint, is in use, or is of another run.
    """
    config = workdir.config_of(directory) if config is None else config
    if best and not config.keep_best:
        raise UserError(
            f"{directory} has no checkpoint of its best round; train the run with "
            "config.keep_best=True in another work directory."
        )
    with locks.hold(directory):
        chunk = workdir.clients_per_chunk(directory)
        built = experiment_lib.build(config, clients_per_chunk=chunk)
        checkpoints = Checkpoints(
            directory / (checkpoint.BEST if best else checkpoint.LATEST),
            to_host=built.store.to_host,
            to_devices=built.store.to_devices,
        )
        with contextlib.closing(checkpoints):
            built.store.open(directory, overwrite=False)
            state = built.programs.init(built.examples, jax.random.key(config.seed))
            restore = restore_best if best else loop.restore
            restored = restore(built, directory, checkpoints, state)
            yield Reopened(built, restored.state)


def restore_best(
    experiment: Experiment,
    directory: pathlib.Path,
    checkpoints: Checkpoints,
    state: FederatedState,
) -> Restored:
    """Reads the checkpoint of the round with the best validation score.

    Args:
      experiment: The experiment of the run.
      directory: The work directory.
      checkpoints: The checkpoints in `checkpoint.BEST` of the work directory.
      state: A state of the run, for structure, shapes and dtypes.

    Returns:
      The state as the programs take it, and its notes.

    Raises:
      UserError: The checkpoint of that round is missing or damaged, or is of another run.
    """
    rows = writers.read_rows(directory / "metrics.jsonl")
    wanted, found = results.best_round(experiment.task, rows), checkpoints.latest_round()
    if wanted is None:
        raise UserError(
            f"{directory} has no best round, as a row of metrics.jsonl has no validation score; "
            "choose another config.score, or use the latest checkpoint."
        )
    if found == wanted:
        restored = loop.restore(experiment, directory, checkpoints, state)
        if int(restored.state.round) == wanted:  # A damaged one would leave an earlier one.
            return restored
    raise UserError(
        f"{directory / checkpoint.BEST} has no intact checkpoint of round {wanted}, the best one; "
        "finish the run with --resume, or train it again in another work directory."
    )
