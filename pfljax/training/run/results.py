"""Results of a run: the rows of `metrics.jsonl`, and `result.json`."""

from __future__ import annotations

import functools
import math
import pathlib
from typing import Any

import jax
import numpy as np

from pfljax import data, metrics
from pfljax.core import Task
from pfljax.data import Split
from pfljax.engine import init
from pfljax.engine.accounting import traffic
from pfljax.training.run import provenance, runtime
from pfljax.training.run.clock import Clock
from pfljax.training.study import aggregation, architectures
from pfljax.training.study.config_runs import planned_rounds
from pfljax.training.study.experiment import Experiment, clients_without_a_step

# The beginning of the names of per-client arrays with the groups of clients.
GROUP = "group_"


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
      evaluation: The sums and values per client of the evaluation after these rounds.
      history: The metrics of the last call of the round program. Not of all rounds since the
        previous evaluation, as a run resumed from a checkpoint in between does not have them.
    """
    row: dict[str, Any] = {"round": done}
    for name, values in history.items():
        # Rounds in which no client had anything to report are not counted.
        known = values[np.isfinite(values)]
        row[f"train/{name}"] = float(np.mean(known)) if known.size else None
    participates = _evaluated(experiment) < experiment.dataset.num_participants
    for model in evaluation:
        for split in ("test", "validation"):
            examples = _counts(experiment, evaluation, model, split)
            for name, (sums, sizes) in _sums(experiment, evaluation, model, split).items():
                more = name not in experiment.task.lower_is_better
                for who, some in (("", participates), ("unseen_", ~participates)):
                    key = f"{model}/{who}{split}_{name}"
                    summary = metrics.summarize(sums[some], sizes[some], more_is_better=more)
                    if summary is not None:
                        row |= {f"{key}_{field}": v for field, v in summary._asdict().items()}
                    if examples[some].any():
                        row[f"{key}_clients"] = int(np.sum(sizes[some] > 0))
                    if name == "loss" and summary is not None:
                        row[key] = summary.weighted
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


def _sums(
    experiment: Experiment, evaluation, model: str, split: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns `{metric: (sums, sizes)}`, `[clients]` each, whose ratios are the clients' values.

    A metric of whole outputs is weighted by the examples of the clients for which it is defined.
    """
    counts, found = _counts(experiment, evaluation, model, split), {}
    for name, values in evaluation[model][split].items():
        if name in experiment.task.client_metrics:
            sizes = np.where(np.isnan(values), 0, counts)
            found[name] = np.where(sizes > 0, values, 0).astype(np.float64) * sizes, sizes
        elif name != "count":
            found[name] = values, counts
    return found


def scores(row: dict[str, Any], score: str) -> dict[str, float]:
    """Returns the scores of a row that a progress bar shows.

    Args:
      row: A row of `metrics.jsonl`.
      score: The metric by which models are compared.
    """
    return {
        model: row[f"{model}/test_{score}_weighted"]
        for model in ("personal", "global")
        if f"{model}/test_{score}_weighted" in row
    }


def best_round(task: Task, rows: list[dict[str, Any]]) -> int | None:
    """Returns the round with the best validation score of the personalized models.

    Args:
      task: The task of the run.
      rows: Rows of `metrics.jsonl`.

    Returns:
      The round that `at_best_validation` in `result.json` refers to; None without rows, or if one
      of them has no score.
    """
    if not rows:
        return None
    more = task.more_is_better
    index = metrics.best_round(rows, "personal", task.score, more_is_better=more)
    return None if index is None else rows[index]["round"]


def _over_rounds(
    task: Task, rows: list[dict[str, Any]], model: str, name: str
) -> dict[str, float | None] | None:
    """Returns a metric across rounds, computed from the rows only, for exact resumption."""
    chosen = metrics.best_round(rows, model, task.score, more_is_better=task.more_is_better)
    more = name not in task.lower_is_better
    return metrics.over_rounds(rows, model, name, chosen, more_is_better=more)


def _metrics(task: Task, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns `metrics` of `result.json`; none for rows that an earlier version wrote."""
    prefix, suffix = "personal/test_", "_clients"
    names = [
        key.removeprefix(prefix).removesuffix(suffix)
        for key in rows[-1]
        if key.startswith(prefix) and key.endswith(suffix)
    ]
    return {
        name: {
            "title": metrics.METRICS[name].title if name in task.client_metrics else name,
            "percent": metrics.is_percent(name),
            "more_is_better": name not in task.lower_is_better,
            # Number of participating clients that have a value, after the last round.
            "clients": rows[-1][f"{prefix}{name}{suffix}"],
            "personal": _over_rounds(task, rows, "personal", name),
            "global": _over_rounds(task, rows, "global", name),
        }
        for name in names
    }


def summarize(experiment: Experiment, rows: list[dict[str, Any]], clock: Clock) -> dict[str, Any]:
    """Returns the content of `result.json`.

    Args:
      experiment: The experiment.
      rows: The rows of `metrics.jsonl`.
      clock: The clock that ran the programs.
    """
    task = experiment.task
    upload, download = _traffic(experiment)
    return _about(experiment) | {
        # The scores once more, where readers of old results expect them.
        metrics.result_key("personal", task.score): _over_rounds(
            task, rows, "personal", task.score
        ),
        metrics.result_key("global", task.score): _over_rounds(task, rows, "global", task.score),
        "metrics": _metrics(task, rows),
        "seconds_compile": clock.compile_seconds,
        "seconds_per_round": clock.seconds_per_round,
        "seconds_per_evaluation": clock.seconds_per_evaluation,
        "examples_per_second": clock.examples_per_second,
        "padding_fraction": clock.padding_fraction,
        "peak_device_bytes": runtime.peak_device_bytes(
            experiment.devices, [experiment.programs.run_rounds, experiment.programs.evaluate]
        ),
        "peak_host_bytes": runtime.peak_host_bytes(),
        "upload_bytes": _mean_over_rows(rows, "train/upload_bytes", upload),
        "download_bytes": download,
        "compilations": clock.round_compilations,
        "compilations_after_first_round": clock.later_compilations,
    }


def _traffic(experiment: Experiment) -> tuple[float, float]:
    """Returns the bytes that a client uploads and downloads in a round, the mean over clients."""
    population, examples = experiment.store.example_shapes()
    found = []
    for algorithm, _ in experiment.methods:
        first = functools.partial(init.first_states, algorithm)
        server, one_client = jax.eval_shape(first, population)
        found.append(traffic.count(algorithm, server, one_client, examples))
    if len(found) == 1:
        return found[0].upload, found[0].download
    of_clients = [
        found[architectures.of_client(experiment.config, client)]
        for client in range(experiment.dataset.num_participants)
    ]
    return (
        float(np.mean([one.upload for one in of_clients])),
        float(np.mean([one.download for one in of_clients])),
    )


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
        "split": "given with the data" if given else config.data.split,
        "standardize": config.data.standardize,
        "user_features": config.data.user_features,
        "model": " / ".join(config.architectures) or config.model.name,
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
        "provenance": provenance.collect(experiment.devices),
        "further_metrics": [name for name in config.metrics if name != task.score],
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
    if names := experiment.config.architectures:
        of_each = [names[architectures.of_client(experiment.config, client)] for client in ids]
        arrays["architecture"] = np.array(of_each)
    if dataset.client_names:
        arrays["client_name"] = np.array([dataset.client_names[client] for client in ids])
    for name, of_clients in (dataset.groups or {}).items():
        arrays[f"{GROUP}{name}"] = of_clients[ids]
    for model, splits in evaluation.items():
        for split in splits:
            for name, (sums, sizes) in _sums(experiment, evaluation, model, split).items():
                missing = np.full(len(sizes), math.nan)
                values = np.divide(sums, sizes, out=missing, where=sizes > 0)
                arrays[f"{model}_{split}_{name}"] = values
    return arrays
