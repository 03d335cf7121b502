"""A run: rounds, evaluations, checkpoints, and the files they leave in the work directory."""

from __future__ import annotations

import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pfljax import metrics
from pfljax.engine import traffic
from pfljax.errors import UserError
from pfljax.training import runtime, workdir, writers
from pfljax.training.checkpoint import Checkpoints
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
    config, examples = experiment.config, experiment.examples
    workdir.claim(directory, config, resume=resume)
    counter = runtime.CompilationCounter()
    checkpoints = Checkpoints(directory / "checkpoints")
    num_rounds = np.int32(config.rounds)
    state = experiment.start(examples, jax.random.key(config.seed))
    if resume and checkpoints.latest_round() is not None:
        state = checkpoints.restore(state, examples.num_clients, experiment.devices)
    done = int(state.round)
    if done > config.rounds:
        raise UserError(
            f"{directory} holds a run of {done} rounds and config.rounds is {config.rounds}; raise "
            "it, or name another --workdir."
        )
    rows = [row for row in writers.read_rows(directory / "metrics.jsonl") if row["round"] <= done]
    first_process = jax.process_index() == 0
    writer = writers.MetricsWriter(directory, rows) if first_process else None

    clock = _Clock(counter)
    scores: dict[str, float] = {}
    evaluation = None
    try:
        if not rows:
            evaluation = clock.evaluate(experiment, state, num_rounds)
            rows.append(_row(experiment, done, evaluation, {}))
            scores = _scores(rows[-1])
            if writer:
                writer.write(rows[-1])
            progress(done, scores)
        while done < config.rounds:
            stop = _next_stop(done, config)
            now = min(stop - done, config.engine.rounds_per_call)
            state, history = clock.run_rounds(experiment, state, num_rounds, now)
            done += now
            _require_finite(history, done, config, checkpoints)
            if done % config.eval_every == 0 or done == config.rounds:
                evaluation = clock.evaluate(experiment, state, num_rounds)
                rows.append(_row(experiment, done, evaluation, history))
                scores = _scores(rows[-1])
                if writer:
                    writer.write(rows[-1])
            every = config.checkpoint_every
            if done == config.rounds or (every and done % every == 0):
                checkpoints.save(state, examples.num_clients)
            progress(done, scores)
        if evaluation is None:  # A finished run, resumed: nothing was left to do.
            evaluation = clock.evaluate(experiment, state, num_rounds)
    finally:
        checkpoints.close()
        counter.close()
        if writer:
            writer.close()

    result = _result(experiment, state, rows, clock)
    if first_process:
        _write_clients(directory / "clients.npz", experiment, evaluation)
        writers.write_json(directory / "result.json", result)
    return result


class _Clock:
    """Times rounds and evaluations, and counts what they compile."""

    def __init__(self, counter: runtime.CompilationCounter):
        self._counter = counter
        self.compile_seconds = 0.0
        self.round_seconds: list[float] = []
        self.evaluation_seconds: list[float] = []
        self.round_compilations = 0
        self.later_compilations = 0
        self.examples: list[float] = []
        self.slots: list[float] = []

    def _timed(self, program, *args):
        """Runs a program; returns its result, its seconds, and how many programs it compiled."""
        programs = self._counter.programs
        if program.compile_seconds == 0:
            program.compile(*args)
            self.compile_seconds += program.compile_seconds
        begin = time.perf_counter()
        result = jax.block_until_ready(program(*args))
        return result, time.perf_counter() - begin, self._counter.programs - programs

    def run_rounds(self, experiment, state, num_rounds, now):
        first = not self.round_seconds
        (state, history), seconds, compiled = self._timed(
            experiment.run_rounds, state, experiment.examples, num_rounds, np.int32(now)
        )
        history = {name: np.asarray(values)[:now] for name, values in history.items()}
        self.round_seconds.append(seconds / now)
        self.round_compilations += compiled
        self.later_compilations += 0 if first else compiled
        self.examples.append(float(np.sum(history["examples"])) / now)
        self.slots.append(float(np.sum(history["slots"])) / now)
        return state, history

    def evaluate(self, experiment, state, num_rounds):
        evaluation, seconds, compiled = self._timed(
            experiment.evaluate, state, experiment.examples, num_rounds
        )
        self.later_compilations += compiled if self.evaluation_seconds else 0
        self.evaluation_seconds.append(seconds)
        return jax.tree.map(np.asarray, evaluation)


def _next_stop(done: int, config) -> int:
    """The next round after which the host has something to do."""
    stops = [config.rounds, (done // config.eval_every + 1) * config.eval_every]
    if config.checkpoint_every:
        stops.append((done // config.checkpoint_every + 1) * config.checkpoint_every)
    return min(stops)


def _require_finite(history, done, config, checkpoints) -> None:
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


def _summaries(experiment: Experiment, evaluation, model: str, split: str):
    """The accuracy of the participants, and of the unseen clients."""
    sums = evaluation[model][split]["accuracy"]
    sizes = getattr(experiment.dataset, split).sizes
    seen = experiment.dataset.num_participants
    return metrics.summarize(sums[:seen], sizes[:seen]), metrics.summarize(
        sums[seen:], sizes[seen:]
    )


def _row(experiment: Experiment, done: int, evaluation, history) -> dict[str, Any]:
    """One line of metrics.jsonl; flat, so that any reader of tables takes it."""
    row: dict[str, Any] = {"round": done}
    for name, values in history.items():
        row[f"train/{name}"] = float(np.mean(values))
    for model in evaluation:
        for split in ("test", "validation"):
            seen, unseen = _summaries(experiment, evaluation, model, split)
            for who, summary in (("", seen), ("unseen_", unseen)):
                if summary is not None:
                    for field, value in summary._asdict().items():
                        row[f"{model}/{who}{split}_accuracy_{field}"] = value
            count = max(1, getattr(experiment.dataset, split).sizes.sum())
            row[f"{model}/{split}_loss"] = float(evaluation[model][split]["loss"].sum() / count)
    return row


def _scores(row: dict[str, Any]) -> dict[str, float]:
    """The two numbers that the progress bar shows."""
    return {
        model: row[f"{model}/test_accuracy_weighted"]
        for model in ("personal", "global")
        if f"{model}/test_accuracy_weighted" in row
    }


def _accuracy(rows: list[dict[str, Any]], model: str) -> dict[str, float | None] | None:
    """The accuracies of `result.json`, from the rows alone, so that resuming changes nothing."""

    def summary(row, name):
        prefix = f"{model}/{name}_accuracy_"
        if f"{prefix}weighted" not in row:
            return None
        return metrics.Summary(**{field: row[prefix + field] for field in metrics.Summary._fields})

    if summary(rows[-1], "test") is None:
        return None
    return metrics.over_rounds(
        *([summary(row, name) for row in rows] for name in ("test", "validation", "unseen_test"))
    )


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _result(experiment: Experiment, state, rows, clock: _Clock) -> dict[str, Any]:
    config, dataset = experiment.config, experiment.dataset
    one_client = jax.tree.map(lambda leaf: leaf[0, 0], state.clients)
    bytes_of = traffic.count(experiment.algorithm, state.server, one_client, experiment.examples)
    # The first call of a program also loads it; where there are others, they tell the speed.
    seconds = _median(clock.round_seconds[1:] or clock.round_seconds)
    examples = sum(clock.examples) / len(clock.examples) if clock.examples else None
    slots = sum(clock.slots) / len(clock.slots) if clock.slots else None
    return {
        "algorithm": config.algorithm,
        "hyperparameters": dict(config.hparams[config.algorithm]),
        "dataset": dataset.name,
        "partition": config.data.partition,
        "model": config.model.name,
        "seed": config.seed,
        "rounds": config.rounds,
        "num_clients": dataset.num_clients,
        "cohort_size": experiment.plan.size,
        "num_devices": len(experiment.devices),
        "platform": experiment.devices[0].device_kind,
        "personal_accuracy": _accuracy(rows, "personal"),
        "global_accuracy": _accuracy(rows, "global"),
        "seconds_compile": clock.compile_seconds,
        "seconds_per_round": seconds,
        "seconds_per_evaluation": _median(clock.evaluation_seconds[1:] or clock.evaluation_seconds),
        "examples_per_second": examples / seconds if seconds and examples else None,
        "padding_fraction": 1 - examples / slots if slots else None,
        "peak_device_bytes": runtime.peak_device_bytes(
            experiment.devices, [experiment.run_rounds, experiment.evaluate]
        ),
        "peak_host_bytes": runtime.peak_host_bytes(),
        "upload_bytes": bytes_of.upload,
        "download_bytes": bytes_of.download,
        "compilations": clock.round_compilations,
        "compilations_after_first_round": clock.later_compilations,
    }


def _write_clients(path: pathlib.Path, experiment: Experiment, evaluation) -> None:
    """Per-client arrays of the last evaluation, row i for client i."""
    dataset = experiment.dataset
    arrays = {
        "train_size": dataset.train.sizes,
        "test_size": dataset.test.sizes,
        "class_counts": dataset.class_counts(),
        "unseen": np.arange(dataset.num_clients) >= dataset.num_participants,
    }
    for model, splits in evaluation.items():
        for split, sums in splits.items():
            sizes = getattr(dataset, split).sizes
            for name, values in sums.items():
                mean = np.divide(values, sizes, out=np.full(len(sizes), math.nan), where=sizes > 0)
                arrays[f"{model}_{split}_{name}"] = mean
    np.savez_compressed(path, **arrays)
