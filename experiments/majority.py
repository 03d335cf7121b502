"""Accuracies without a model: the most frequent label of all clients, of a client, or of an item.

    python experiments/majority.py --config=configs/popquorn.py --config.data.dir=DIRECTORY \\
        [--unseen]

Prints a table in Markdown, and trains nothing. The accuracies are means over the clients that take
part and have test examples, each with the same weight, and then over `config.seeds`, each with its
own partition and splits as in compare.py:

    all:    the most frequent label among the training examples of all clients
    client: the most frequent label among the client's own training examples
    item:   the most frequent label that other clients' training examples give the same item, and
            that of `all` for an item without any; data sets without items lack this row

With `--unseen`, they are means over the clients held out from training
(`config.data.unseen_fraction`), and labels of `all` and of `item` are those of clients that take
part.
"""

from __future__ import annotations

import numpy as np
from absl import flags

from pfljax.cli import app
from pfljax.data import FederatedDataset, Split
from pfljax.errors import UserError
from pfljax.metrics import summarize
from pfljax.training import sweep
from pfljax.training.study import experiment


def _rows(split: Split, client: int) -> slice:
    return slice(split.offsets[client], split.offsets[client] + split.sizes[client])


def _counts_of_items(dataset: FederatedDataset, client: int) -> np.ndarray:
    """Returns `[num_items, C]`, the number of a client's training examples by item and label."""
    rows = _rows(dataset.train, client)
    counts = np.zeros((len(dataset.items), dataset.num_classes), np.int32)
    np.add.at(counts, (dataset.inputs[rows], dataset.targets[rows]), 1)
    return counts


def accuracies(dataset: FederatedDataset, *, unseen: bool = False) -> dict[str, np.ndarray]:
    """Returns `{rule: [clients] float}`, the test accuracies of the clients.

    Clients without test examples are left out. Of equally frequent labels, the smallest is
    predicted.

    Args:
      dataset: A classification; labels of held-out clients are counted for themselves only.
      unseen: Whether the tested clients are those held out; otherwise those that take part.
    """
    participants = range(dataset.num_participants)
    counts = dataset.class_counts()
    common = counts[: dataset.num_participants].sum(axis=0).argmax()
    found: dict[str, list[float]] = {"all": [], "client": []}
    if dataset.items is not None:
        found["item"] = []
        of_items = sum(_counts_of_items(dataset, client) for client in participants)
    for client in range(len(participants), dataset.num_clients) if unseen else participants:
        test = _rows(dataset.test, client)
        targets = dataset.targets[test]
        if not len(targets):
            continue
        found["all"].append(np.mean(targets == common))
        found["client"].append(np.mean(targets == counts[client].argmax()))
        if "item" in found:
            own = 0 if unseen else _counts_of_items(dataset, client)
            others = (of_items - own)[dataset.inputs[test]]
            predicted = np.where(others.any(axis=1), others.argmax(axis=1), common)
            found["item"].append(np.mean(targets == predicted))
    return {rule: np.array(values) for rule, values in found.items()}


def define_flags() -> None:
    """Defines the flags of this script."""
    app.define_config()
    flags.DEFINE_bool("unseen", False, "Test held-out clients, which never train.")


def main() -> None:
    """Runs the script."""
    config = app.config()
    scores: dict[str, list[tuple[float, float]]] = {}
    for seed in config.seeds:
        vary = config.seeds_vary == "everything"
        dataset = experiment.build_dataset(sweep.changed(config, {}, seed, vary_data=vary))
        if dataset.task != "classification":
            raise UserError(
                f"The targets of {dataset.name} are not labels, of which one is the most frequent; "
                "set config.data.name to a classification."
            )
        if flags.FLAGS.unseen and not dataset.num_unseen:
            raise UserError("No client is held out: raise config.data.unseen_fraction above 0.")
        for rule, values in accuracies(dataset, unseen=flags.FLAGS.unseen).items():
            summary = summarize(values, np.ones(len(values)))
            scores.setdefault(rule, []).append((summary.unweighted, summary.worst_decile))
    print("| most frequent label of | mean (%) | worst decile (%) |\n|---|---:|---:|")
    for rule, values in scores.items():
        mean, worst = 100 * np.mean(values, axis=0)
        print(f"| {rule} | {mean:.2f} | {worst:.2f} |")


if __name__ == "__main__":
    app.run(main, define_flags)
