"""A run: rounds, evaluations, checkpoints, and the files they leave in the work directory."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from pfljax.errors import UserError
from pfljax.training import result, workdir, writers
from pfljax.training.checkpoint import Checkpoints
from pfljax.training.clock import Clock
from pfljax.training.experiment import Experiment

# Called after every call of the round program: (rounds done, scores so far).
Progress = Callable[[int, dict[str, float]], None]


def run(
    experiment: Experiment,
    directory: pathlib.Path,
    *,
    resume: bool = False,
    progress: Progress = lambda rounds, scores: None,
) -> dict[str, Any]:
    """Trains and evaluates one method, and writes everything it finds out.

    Args:
      experiment: what to run.
      directory: the work directory; made where it does not exist.
      resume: go on from the newest checkpoint in it, if there is one.
      progress: is told how far the run is.

    Returns:
      The content of `result.json`.

    Raises:
      UserError: the directory holds another run, or the training diverged.
    """
    config, num_clients = experiment.config, experiment.examples.num_clients
    workdir.claim(directory, config, resume=resume)
    clock = Clock(experiment)
    checkpoints = Checkpoints(directory / "checkpoints")
    writer = None
    try:
        state = clock.start(config.seed)
        if resume and checkpoints.latest_round() is not None:
            state = checkpoints.restore(state, num_clients, experiment.devices)
        done = int(state.round)
        if done > config.rounds:
            raise UserError(
                f"{directory} holds a run of {done} rounds and config.rounds is {config.rounds}; "
                "raise it, or name another --workdir."
            )
        rows = writers.read_rows(directory / "metrics.jsonl")
        rows = [row for row in rows if row["round"] <= done]
        if jax.process_index() == 0:
            writer = writers.MetricsWriter(directory, rows)

        evaluation, history = None, {}
        while True:
            if not rows or (done > rows[-1]["round"] and _is_due(done, config.eval_every, config)):
                evaluation = clock.evaluate(state)
                rows.append(result.metrics_row(experiment, done, evaluation, history))
                if writer:
                    writer.write(rows[-1])
            progress(done, result.scores(rows[-1]))
            if done == config.rounds:
                break
            now = min(_next_stop(done, config) - done, config.engine.rounds_per_call)
            state, history = clock.run_rounds(state, now)
            done += now
            _require_finite(history, done, config, checkpoints)
            if _is_due(done, config.checkpoint_every, config):
                checkpoints.save(state, num_clients)
        if evaluation is None:  # A finished run, resumed: nothing was left to do.
            evaluation = clock.evaluate(state)
    finally:
        checkpoints.close()
        clock.close()
        if writer:
            writer.close()

    summary = result.summarize(experiment, state, rows, clock)
    if jax.process_index() == 0:
        result.write_clients(directory / "clients.npz", experiment, evaluation)
        writers.write_json(directory / "result.json", summary)
    return summary


def _is_due(done: int, every: int, config: ml_collections.ConfigDict) -> bool:
    """Whether something happens after this round: every so often, and after the last."""
    return done == config.rounds or (every > 0 and done % every == 0)


def _next_stop(done: int, config: ml_collections.ConfigDict) -> int:
    """The next round after which the host has something to do."""
    return next(
        stop
        for stop in range(done + 1, config.rounds + 1)
        if _is_due(stop, config.eval_every, config)
        or _is_due(stop, config.checkpoint_every, config)
    )


def _require_finite(
    history: dict[str, np.ndarray],
    done: int,
    config: ml_collections.ConfigDict,
    checkpoints: Checkpoints,
) -> None:
    """Stops a run that diverged, before a checkpoint is written of it."""
    for name, values in history.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            saved = checkpoints.latest_round()
            kept = f"the checkpoint of round {saved} is kept" if saved else "none was saved yet"
            raise UserError(
                f"The {name} of {config.algorithm} is no finite number in round "
                f"{done - len(values) + int(bad[0]) + 1}; lower config.client_optimizer."
                f"learning_rate or the method's hyper-parameters ({kept})."
            )
