"""One run: a method with a seed on a federated data set."""

from __future__ import annotations

import pathlib

import ml_collections

from pfljax.training.comparison import AddProgress, no_progress
from pfljax.training.run import locks, loop, workdir
from pfljax.training.study import experiment


def run(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    *,
    resume: bool,
    add_progress: AddProgress = no_progress,
) -> dict:
    """Trains and evaluates a run, or what is missing of it.

    Args:
      config: The config of the run.
      directory: The work directory; created if missing.
      resume: Whether to resume from the latest checkpoint, if any.
      add_progress: Called with the names of the run and of its score; returns the callback of its
        progress.

    Returns:
      The content of `result.json`.

    Raises:
      UserError: The config is invalid, or the directory contains another run.
      DivergedError: A state or a loss is not finite.
      Stopped: A signal stopped the run; a checkpoint is saved.
    """
    experiment.check(config)
    workdir.check(directory, config, resume=resume)
    with locks.hold(directory):
        built = experiment.build(config, clients_per_chunk=workdir.clients_per_chunk(directory))
        progress = add_progress(config.algorithm, built.task.score)
        return loop.run(built, directory, resume=resume, progress=progress)
