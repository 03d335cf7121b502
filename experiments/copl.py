"""CoPL (`pfljax.ops.copl`) on a data set of preferences, beside the methods of compare.py.

    python experiments/copl.py --config=configs/preferences.py:simulated

The config's data set has the task preference; the splits and the held-out users are those of
compare.py with the same config, so that its figures stand beside this table. An answer is
recognized by its features. Each stage keeps the step with the best validation accuracy, of all
learning rates (`--rates`); test pairs are scored once. Says how many answers have pairs of several
users, which the graph needs, and prints a table in Markdown: mean ± standard deviation over the
seeds. With `--workdir`, the accuracy of each user is written to
`WORKDIR/ROW/seed_SEED/clients.npz`, where `experiments/preferences.py` finds it.
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np
from absl import flags

from pfljax.cli import app
from pfljax.data import FederatedDataset, answers
from pfljax.errors import UserError
from pfljax.ops import copl
from pfljax.ops.preference import wins
from pfljax.report import tables
from pfljax.training.study import config_runs, experiment

_TITLES = {
    "graph": "CoPL, graph",
    "one expert": "CoPL, one expert",
    "all experts": "CoPL, all experts",
}


class Found(NamedTuple):
    """The result of CoPL with one seed.

    Attributes:
      correct: `[n]` for each row of the table, 1 for a test pair that is predicted, 0.5 for a tie.
      client: `[n]` int32, the client of the test pair.
      rates: The learning rate that was chosen, by the name of the stage.
      shared: Number of answers in training pairs of two users or more.
      known: Number of answers in training pairs.
    """

    correct: dict[str, np.ndarray]
    client: np.ndarray
    rates: dict[str, float]
    shared: int
    known: int


def pairs_of(dataset: FederatedDataset) -> tuple[dict[str, copl.Pairs], np.ndarray]:
    """Returns the pairs of each split, and the standardized features `[I, d]` of all answers."""
    items, features = answers.numbered(dataset)
    found = {}
    for name in ("train", "validation", "test"):
        client, row = getattr(dataset, name).examples()
        found[name] = copl.Pairs(client, items[row])
    return found, features


def users_of_answers(pairs: copl.Pairs, num_items: int) -> np.ndarray:
    """Returns `[I]`, the number of users who have a pair with each answer."""
    answer_of = np.stack([pairs.items.ravel(), np.repeat(pairs.user, 2)], axis=1)
    return np.bincount(np.unique(answer_of, axis=0)[:, 0], minlength=num_items)


def evaluate(dataset: FederatedDataset, rates: list[float], settings: copl.Settings) -> Found:
    """Trains all stages and scores test pairs.

    Args:
      dataset: The pairs of all users.
      rates: The learning rates of each stage, of which the best on validation pairs is used.
      settings: The settings of the training.

    Raises:
      UserError: There are no validation pairs.
    """
    pairs, features = pairs_of(dataset)
    count = dataset.num_participants
    seen = {name: of.of(of.user < count) for name, of in pairs.items()}
    new = {name: of.of(of.user >= count) for name, of in pairs.items()}
    new = {name: copl.Pairs(of.user - count, of.items) for name, of in new.items()}
    if not len(seen["validation"].user):
        raise UserError(
            "CoPL is selected on validation pairs; set config.data.validation_fraction."
        )
    model = copl.fit(seen["train"], seen["validation"], count, features, rates, settings)
    groups = [(model.users, seen["test"])]
    if len(new["test"].user):
        mixed = copl.new_users(
            (model.users, model.items),
            seen["train"],
            new["train"],
            dataset.num_unseen,
            settings.temperature,
        )
        groups.append((mixed, new["test"]))
    margins = [copl.margins(model, users, features, test, settings) for users, test in groups]
    correct = {
        title: np.concatenate([np.asarray(wins(of_group[name])) for of_group in margins])
        for name, title in _TITLES.items()
    }
    users = users_of_answers(seen["train"], len(features))
    return Found(correct, pairs["test"].user, model.rates, np.sum(users > 1), np.sum(users > 0))


def write(directory: pathlib.Path, dataset: FederatedDataset, found: Found, seed: int) -> None:
    """Writes the accuracy of each client for every row, in the form of a run of compare.py.

    Args:
      directory: The work directory.
      dataset: The pairs of all users.
      found: The result.
      seed: The seed.
    """
    sizes = dataset.test.sizes
    for title, correct in found.correct.items():
        path = directory / title / f"seed_{seed}"
        path.mkdir(parents=True, exist_ok=True)
        sums = np.bincount(found.client, correct, minlength=len(sizes))
        np.savez_compressed(
            path / "clients.npz",
            client=np.arange(len(sizes)),
            train_size=dataset.train.sizes,
            test_size=sizes,
            personal_test_accuracy=np.where(sizes > 0, sums / np.maximum(sizes, 1), np.nan),
        )


def define_flags() -> None:
    """Defines the flags of this script."""
    app.define_config()
    flags.DEFINE_string("workdir", None, "A directory for the accuracies of users.")
    flags.DEFINE_list("rates", ["0.001", "0.003", "0.01", "0.03", "0.1"], "The learning rates.")
    for name, value in copl.Settings()._asdict().items():
        define = flags.DEFINE_float if isinstance(value, float) else flags.DEFINE_integer
        define(name, value, f"The setting {name}, see pfljax.ops.copl.Settings.")


def main() -> None:
    """Runs the script."""
    config, given = app.config(), flags.FLAGS
    settings = copl.Settings(**{name: given[name].value for name in copl.Settings._fields})
    try:
        rates = [float(rate) for rate in given.rates]
    except ValueError as error:
        raise UserError(f"--rates={','.join(given.rates)} are no numbers ({error}).") from error
    of_seeds: dict[str, list[tuple[float, float]]] = {}
    for seed in config.seeds:
        own = config_runs.of_run(config, config.algorithms[0], seed)
        dataset = experiment.build_dataset(own)
        if dataset.task != "preference":
            raise UserError(
                f"{dataset.name} has the task {dataset.task}; copl.py is for the task preference."
            )
        found = evaluate(dataset, rates, settings)
        shown = ", ".join(f"{_TITLES[name]} {rate:g}" for name, rate in found.rates.items())
        app.say(
            f"Learning rates with seed {seed}: {shown}; {found.shared:,} of {found.known:,} "
            "answers in training pairs have several users"
        )
        if given.workdir:
            write(pathlib.Path(given.workdir), dataset, found, seed)
        for title, correct in found.correct.items():
            known = found.client < dataset.num_participants
            means = [
                float(of.mean()) if len(of) else np.nan for of in (correct[known], correct[~known])
            ]
            of_seeds.setdefault(title, []).append(tuple(means))
    lines = ["| method | personalized (%) | unseen (%) |", "|---|---:|---:|"]
    for name, values in of_seeds.items():
        cells = [tables.percent_over_seeds(column, 2) for column in zip(*values, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    print("\n".join(lines))


if __name__ == "__main__":
    app.run(main, define_flags)
