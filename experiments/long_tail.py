"""Scores of finished runs on a long tail, by the frequency of classes and with a class mask.

    python experiments/long_tail.py --config=configs/fedloge.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY

WORKDIR is that of compare.py with the same config, whose data set is a long tail that leaves
balanced test examples (`config.data.options.cifar10_lt.largest`). Prints a table in Markdown, with
the mean and the standard deviation over seeds:

    all, many, medium, few: accuracy of the global model on the balanced test examples, of all
        classes, of the most frequent classes up to 75 % of the clients' training examples, of the
        next ones up to 95 %, and of the rest
    local:  accuracy of the personalized models on the clients' test examples
    masked: the same if a client never predicts a class of which it has no training example, which
        raises the accuracy of every method without better models
"""

from __future__ import annotations

import pathlib

import numpy as np

from pfljax import api
from pfljax.cli import app
from pfljax.data import sources
from pfljax.errors import UserError
from pfljax.report import tables

_LONG_TAILS = {"cifar10_lt": "cifar10", "cifar100_lt": "cifar100"}
_GROUPS = ("all", "many", "medium", "few")
_COLUMNS = (*_GROUPS, "local", "masked")


def groups(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the classes of each group as `[C]` bool.

    A class belongs to the group in which the cumulative number of examples ends with it, from the
    most frequent class on.

    Args:
      counts: `[C]`, the number of training examples of each class.
    """
    order = np.argsort(-counts, kind="stable")
    ends = np.empty(len(counts))
    ends[order] = np.cumsum(counts[order]) / counts.sum()
    many, medium = ends <= 0.75, (ends > 0.75) & (ends <= 0.95)
    return {
        "all": np.ones(len(counts), bool),
        "many": many,
        "medium": medium,
        "few": ~many & ~medium,
    }


def accuracy_of_groups(
    predicted: np.ndarray, targets: np.ndarray, counts: np.ndarray
) -> dict[str, float]:
    """Returns the accuracy on the examples of each group of classes; NaN for a group without any.

    Args:
      predicted: `[n]`, the predicted classes.
      targets: `[n]`, the labels.
      counts: `[C]`, the number of training examples of each class.
    """
    found = {}
    for name, classes in groups(counts).items():
        rows = classes[targets]
        found[name] = float(np.mean(predicted[rows] == targets[rows])) if rows.any() else np.nan
    return found


def local_accuracy(
    outputs: list[np.ndarray], targets: list[np.ndarray], present: np.ndarray
) -> dict[str, float]:
    """Returns the accuracy over all clients' test examples without and with the class mask.

    Args:
      outputs: `[n_k, C]` of each client.
      targets: `[n_k]` of each client.
      present: `[N, C]` bool, the classes of each client's training examples.
    """
    hits, masked = [], []
    for logits, labels, known in zip(outputs, targets, present, strict=True):
        hits.append(logits.argmax(axis=-1) == labels)
        masked.append(np.where(known, logits, -np.inf).argmax(axis=-1) == labels)
    return {
        "local": float(np.mean(np.concatenate(hits))),
        "masked": float(np.mean(np.concatenate(masked))),
    }


def scores(run: api.Run, balanced: sources.Examples) -> dict[str, float]:
    """Returns the entries of a run, without those of a global model if there is none."""
    dataset, found = run.dataset, {}
    counts = dataset.class_counts()
    if run.result.get("global_accuracy") is not None:
        predicted = run.global_model().predict(balanced.inputs)
        found |= accuracy_of_groups(predicted, balanced.targets, counts.sum(axis=0))
    parts = [
        slice(offset, offset + size) for offset, size in zip(*dataset.test, strict=True) if size
    ]
    tested = np.flatnonzero(dataset.test.sizes)
    models = run.clients(tested.tolist())
    outputs = [
        model.outputs(dataset.inputs[part]) for model, part in zip(models, parts, strict=True)
    ]
    targets = [dataset.targets[part] for part in parts]
    return found | local_accuracy(outputs, targets, counts[tested] > 0)


def row(name: str, of_seeds: list[dict[str, float]]) -> str:
    """Returns the line of a method, in percent."""
    cells = [name]
    for column in _COLUMNS:
        values = [found[column] for found in of_seeds if column in found]
        cells.append(tables.percent_over_seeds(values))
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Runs the command."""
    config, directory = app.study()
    name = config.data.name
    if name not in _LONG_TAILS:
        known = ", ".join(_LONG_TAILS)
        raise UserError(f"config.data.name is {name!r}, which is not a long tail; use {known}.")
    pool = sources.SOURCES[_LONG_TAILS[name]](config.data.dir)
    balanced = sources.beyond_long_tail(pool, config.data.options[name].largest)
    lines = ["| method | " + " | ".join(f"{column} (%)" for column in _COLUMNS) + " |"]
    lines.append("|---" + "|---:" * len(_COLUMNS) + "|")
    for method in config.algorithms:
        runs = [directory / method / f"seed_{seed}" for seed in config.seeds]
        lines.append(row(method, [_scores_in(run, balanced) for run in runs]))
    print("\n".join(lines))


def _scores_in(directory: pathlib.Path, balanced: sources.Examples) -> dict[str, float]:
    return scores(api.open_run(directory), balanced)


if __name__ == "__main__":
    app.run(main, app.define_study)
