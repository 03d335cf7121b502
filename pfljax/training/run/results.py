"""Results of a run: the rows of `metrics.jsonl`, and `result.json`."""

from __future__ import annotations

import functools
import math
import pathlib
from typing import Any

import jax
import numpy as np

from pfljax import data, metrics
from pfljax.core import FederatedState, Task
from pfljax.data import Split
from pfljax.engine import init
from pfljax.engine.accounting import traffic
from pfljax.training.run import runtime
from pfljax.training.run.clock import Clock
from pfljax.training.study import aggregation
from pfljax.training.study.config import planned_rounds
from pfljax.training.study.experiment import Experiment, clients_without_a_step


def metrics_row(
    experiment: Experiment,
    done: int,
    evaluation: dict[str, Any],
    history: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Returns a row of `metrics.jsonl`, without nesting.

    Args:
      experiment: The experiment.
      done: Number of finished rounds.
      evaluation: The sums per client of the evaluation after these rounds.
      history: The metrics of the last call of the round program. Not of all rounds since the
        previous evaluation, as a run resumed from a checkpoint in between does not have them.
    """
    row: dict[str, Any] = {"round": done}
    for name, values in history.items():
        # Rounds in which no client had anything to report are not counted.
        known = values[np.isfinite(values)]
        row[f"train/{name}"] = float(np.mean(known)) if known.size else None
    task = experiment.task
    for model in evaluation:
        for split in ("test", "validation"):
            seen, unseen = _summaries(experiment, evaluation, model, split)
            for who, summary in (("", seen), ("unseen_", unseen)):
                if summary is not None:
                    for field, value in summary._asdict().items():
                        row[f"{model}/{who}{split}_{task.score}_{field}"] = value
            counts = _counts(experiment, evaluation, model, split)
            losses = evaluation[model][split]["loss"]
            participates = _evaluated(experiment) < experiment.dataset.num_participants
            for who, some in (("", participates), ("unseen_", ~participates)):
                if counts[some].sum() > 0:
                    mean = float(losses[some].sum() / counts[some].sum())
                    row[f"{model}/{who}{split}_loss"] = mean
    return row


def first_not_finite(experiment: Experiment, evaluation: dict[str, Any]) -> str | None:
    """Returns a description of the first loss that is not finite; None if all are finite."""
    for model, splits in evaluation.items():
        for split, sums in splits.items():
            scored = _counts(experiment, evaluation, model, split) > 0
            bad = np.flatnonzero(scored & ~np.isfinite(sums["loss"]))
            if bad.size:
                client = int(_evaluated(experiment)[bad[0]])
                name = "personalized" if model == "personal" else model
                return f"the {split} loss of the {name} model of client {client} is not finite"
    return None


def _evaluated(experiment: Experiment) -> np.ndarray:
    """Returns the ids of the evaluated clients, in the order of the evaluation."""
    if experiment.store.eval_ids is None:
        return np.arange(experiment.dataset.num_clients)
    return experiment.store.eval_ids


def _counts(experiment: Experiment, evaluation, model: str, split: str) -> np.ndarray:
    """Returns the number of examples, or of the task's units, in the sums of these clients."""
    sizes = getattr(experiment.dataset, split).sizes[_evaluated(experiment)]
    return np.asarray(evaluation[model][split].get("count", sizes))


def _summaries(experiment: Experiment, evaluation, model: str, split: str):
    """Returns the score of the participants, and of the held-out clients."""
    task = experiment.task
    sums = evaluation[model][split][task.score]
    counts = _counts(experiment, evaluation, model, split)
    seen = _evaluated(experiment) < experiment.dataset.num_participants
    return [
        metrics.summarize(sums[some], counts[some], more_is_better=task.more_is_better)
        for some in (seen, ~seen)
    ]


def scores(row: dict[str, Any], score: str) -> dict[str, float]:
    """Returns the scores of a row that a progress bar shows.

    Args:
      row: A row of `metrics.jsonl`.
      score: The score of the task.
    """
    return {
        model: row[f"{model}/test_{score}_weighted"]
        for model in ("personal", "global")
        if f"{model}/test_{score}_weighted" in row
    }


def _over_rounds(
    task: Task, rows: list[dict[str, Any]], model: str
) -> dict[str, float | None] | None:
    """Returns the scores of `result.json`, computed from the rows only, for exact resumption."""

    def summary(row, name):
        prefix = f"{model}/{name}_{task.score}_"
        if f"{prefix}weighted" not in row:
            return None
        return metrics.Summary(**{field: row[prefix + field] for field in metrics.Summary._fields})

    if summary(rows[-1], "test") is None:
        return None
    return metrics.over_rounds(
        *([summary(row, name) for row in rows] for name in ("test", "validation", "unseen_test")),
        more_is_better=task.more_is_better,
    )


def summarize(
    experiment: Experiment, state: FederatedState, rows: list[dict[str, Any]], clock: Clock
) -> dict[str, Any]:
    """Returns the content of `result.json`.

    Args:
      experiment: The experiment.
      state: The state after the last round.
      rows: The rows of `metrics.jsonl`.
      clock: The clock that ran the programs.
    """
    task = experiment.task
    # Accuracies have a separate key, which readers of old results expect.
    key = "accuracy" if task.score == "accuracy" else "score"
    population, examples = experiment.store.example_shapes()
    first = functools.partial(init.first_states, experiment.algorithm)
    _, one_client = jax.eval_shape(first, population)
    bytes_of = traffic.count(experiment.algorithm, state.server, one_client, examples)
    return _about(experiment) | {
        f"personal_{key}": _over_rounds(task, rows, "personal"),
        f"global_{key}": _over_rounds(task, rows, "global"),
        "seconds_compile": clock.compile_seconds,
        "seconds_per_round": clock.seconds_per_round,
        "seconds_per_evaluation": clock.seconds_per_evaluation,
        "examples_per_second": clock.examples_per_second,
        "padding_fraction": clock.padding_fraction,
        "peak_device_bytes": runtime.peak_device_bytes(
            experiment.devices, [experiment.programs.run_rounds, experiment.programs.evaluate]
        ),
        "peak_host_bytes": runtime.peak_host_bytes(),
        "upload_bytes": _mean_over_rows(rows, "train/upload_bytes", bytes_of.upload),
        "download_bytes": bytes_of.download,
        "compilations": clock.round_compilations,
        "compilations_after_first_round": clock.later_compilations,
    }


def _mean_over_rows(rows: list[dict[str, Any]], name: str, otherwise: float) -> float:
    """Returns the mean of a metric over the rows that contain it, or else `otherwise`."""
    known = [row[name] for row in rows if row.get(name) is not None]
    return sum(known) / len(known) if known else otherwise


def of_diverged(experiment: Experiment, round: int, reason: str) -> dict[str, Any]:
    """Returns the content of `result.json` of a run that diverged, without scores.

    Args:
      experiment: The experiment.
      round: The round in which a state or a loss was not finite.
      reason: The message for the user.
    """
    return _about(experiment) | {"diverged": {"round": round, "reason": reason}}


def _about(experiment: Experiment) -> dict[str, Any]:
    """Returns the description of the run in a result."""
    config, dataset, task = experiment.config, experiment.dataset, experiment.task
    given = config.data.name in data.GIVEN
    test = dataset.test.sizes[: dataset.num_participants]
    return {
        "algorithm": config.algorithm,
        "hyperparameters": config.hparams[config.algorithm].to_dict(),
        "aggregation": aggregation.hyperparameters(config),
        "learning_rate": config.learning_rates[config.algorithm]
        or config.client_optimizer.learning_rate,
        "dataset": dataset.name,
        "partition": "given with the data" if given else config.data.partition,
        "model": config.model.name,
        "seed": config.seed,
        "data_seed": config.data.seed,
        "rounds": config.rounds,
        "planned_rounds": planned_rounds(config),
        "eval_every": config.eval_every,
        "num_clients": dataset.num_clients,
        "clients_without_a_step": len(clients_without_a_step(config, dataset)),
        "test_examples": int(test.sum()),
        "cohort_size": experiment.plan.size,
        "clients_per_chunk": experiment.clients_per_chunk,
        "num_devices": len(experiment.devices),
        "platform": experiment.devices[0].device_kind,
        "score_name": task.score,
        "more_is_better": task.more_is_better,
    }


def write_clients(path: pathlib.Path, experiment: Experiment, evaluation: dict[str, Any]) -> None:
    """Writes the arrays of `client_arrays`."""
    np.savez_compressed(path, **client_arrays(experiment, evaluation))


def client_arrays(experiment: Experiment, evaluation: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns per-client arrays of an evaluation; row i belongs to client `client[i]`."""
    dataset, ids = experiment.dataset, _evaluated(experiment)
    train = Split(dataset.train.offsets[ids], dataset.train.sizes[ids])
    arrays = {
        "client": ids,
        "train_size": train.sizes,
        "test_size": dataset.test.sizes[ids],
        "unseen": ids >= dataset.num_participants,
    }
    if dataset.task == "classification":
        arrays["class_counts"] = dataset._replace(train=train).class_counts()
    if dataset.client_names:
        arrays["client_name"] = np.array([dataset.client_names[client] for client in ids])
    for model, splits in evaluation.items():
        for split, sums in splits.items():
            counts = _counts(experiment, evaluation, model, split)
            for name, values in sums.items():
                if name == "count":
                    continue
                missing = np.full(len(counts), math.nan)
                mean = np.divide(values, counts, out=missing, where=counts > 0)
                arrays[f"{model}_{split}_{name}"] = mean
    return arrays
