"""What a run reports: a row per evaluation, and `result.json` made of them."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import jax
import numpy as np

from pfljax import metrics
from pfljax.core import FederatedState
from pfljax.data import Split
from pfljax.engine import traffic
from pfljax.training import runtime
from pfljax.training.clock import Clock
from pfljax.training.experiment import Experiment


def metrics_row(
    experiment: Experiment,
    done: int,
    evaluation: dict[str, Any],
    history: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Returns a line of `metrics.jsonl`; flat, so that any reader of tables takes it.

    Args:
      experiment: that ran.
      done: rounds.
      evaluation: sums per client, after them.
      history: the metrics of the last rounds that one call ran. Not of all since the evaluation
        before: a run resumed from a checkpoint in between does not have those.
    """
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
            count = max(1, _sizes(experiment, split).sum())
            row[f"{model}/{split}_loss"] = float(evaluation[model][split]["loss"].sum() / count)
    return row


def _evaluated(experiment: Experiment) -> np.ndarray:
    """The ids of the clients that evaluations score, in their order."""
    if experiment.eval_ids is None:
        return np.arange(experiment.dataset.num_clients)
    return experiment.eval_ids


def _sizes(experiment: Experiment, split: str) -> np.ndarray:
    """How many examples of a split each of these clients has."""
    return getattr(experiment.dataset, split).sizes[_evaluated(experiment)]


def _summaries(experiment: Experiment, evaluation, model: str, split: str):
    """The accuracy of the participants, and of the unseen clients."""
    sums = evaluation[model][split]["accuracy"]
    sizes = _sizes(experiment, split)
    seen = _evaluated(experiment) < experiment.dataset.num_participants
    return metrics.summarize(sums[seen], sizes[seen]), metrics.summarize(sums[~seen], sizes[~seen])


def scores(row: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of a row that a progress bar shows."""
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


def summarize(
    experiment: Experiment, state: FederatedState, rows: list[dict[str, Any]], clock: Clock
) -> dict[str, Any]:
    """Returns the content of `result.json`.

    Args:
      experiment: that ran.
      state: after the last round.
      rows: of `metrics.jsonl`.
      clock: that ran the programs.
    """
    config, dataset = experiment.config, experiment.dataset
    if experiment.population is None:
        one_client = jax.tree.map(lambda leaf: leaf[0, 0], state.clients)
        examples = experiment.examples
    else:
        one_client, examples = experiment.population.one_client()
    bytes_of = traffic.count(experiment.algorithm, state.server, one_client, examples)
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
        "seconds_per_round": clock.seconds_per_round,
        "seconds_per_evaluation": clock.seconds_per_evaluation,
        "examples_per_second": clock.examples_per_second,
        "padding_fraction": clock.padding_fraction,
        "peak_device_bytes": runtime.peak_device_bytes(
            experiment.devices, [experiment.run_rounds, experiment.evaluate]
        ),
        "peak_host_bytes": runtime.peak_host_bytes(),
        "upload_bytes": bytes_of.upload,
        "download_bytes": bytes_of.download,
        "compilations": clock.round_compilations,
        "compilations_after_first_round": clock.later_compilations,
    }


def write_clients(path: pathlib.Path, experiment: Experiment, evaluation: dict[str, Any]) -> None:
    """Writes per-client arrays of an evaluation, row i for client `client[i]`."""
    dataset, ids = experiment.dataset, _evaluated(experiment)
    train = Split(dataset.train.offsets[ids], dataset.train.sizes[ids])
    arrays = {
        "client": ids,
        "train_size": train.sizes,
        "test_size": dataset.test.sizes[ids],
        "class_counts": dataset._replace(train=train).class_counts(),
        "unseen": ids >= dataset.num_participants,
    }
    for model, splits in evaluation.items():
        for split, sums in splits.items():
            sizes = _sizes(experiment, split)
            for name, values in sums.items():
                mean = np.divide(values, sizes, out=np.full(len(sizes), math.nan), where=sizes > 0)
                arrays[f"{model}_{split}_{name}"] = mean
    np.savez_compressed(path, **arrays)
