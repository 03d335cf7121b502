"""Rewards of answers on PRISM and PersonaFeedback, beside the length of the answers.

    python experiments/preferences.py --config=configs/preferences.py:prism \
        --config.data.dir=DIRECTORY --runs=WORKDIR/all,WORKDIR/few
    python experiments/preferences.py --config=configs/preferences.py:persona:easy \
        --config.data.dir=DIRECTORY
    python experiments/preferences.py --config=configs/preferences.py:persona:easy \
        --config.data.dir=DIRECTORY --all_pairs

The splits are those of compare.py with the same config. Rows of the table in Markdown:

    longer answer: the answer with more characters
    longer answer by user: longer or shorter, by the user's training pairs and the prior of all
        users' training pairs, which counts as some pairs (chosen on validation pairs)
    own persona, mean persona: the answer whose features have the larger cosine with the persona of
        the user, or with the mean of all personas (PersonaFeedback only)
    length + features: a logistic reward of all users, of all features of the config; its L2 penalty
        is chosen on validation pairs
    ... and length by user: the same with a length weight of each user in addition, with a penalty
        of its own
    METHOD (FOLDER): the methods that compare.py or copl.py has run on the same splits in a work
        directory FOLDER of `--runs`, after the last round

Accuracies are means over users of a user's accuracy on all tested pairs of all splits, with the
95 % interval of a bootstrap over users. Gains are paired; only an interval that excludes 0 is a
claim. Equal lengths count half. `--all_pairs` prints the accuracies of PersonaFeedback's tiers
without training and without a split.
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np
from absl import flags
from scipy import special

from pfljax.algorithms import ALGORITHMS
from pfljax.cli import app
from pfljax.data import FederatedDataset
from pfljax.data.sources import preferences
from pfljax.errors import UserError
from pfljax.metrics import bootstrap
from pfljax.ops.preference import wins
from pfljax.report import tables
from pfljax.training.study import config_runs, experiment

_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
_PRIORS = (1.0, 3.0, 10.0, 30.0, 100.0)
# The features that have the length first, and on PersonaFeedback then both cosines.
_FEATURES = {"prism_pairs": "both", "persona_feedback": "all"}
_REFERENCES = ("longer answer", "own persona")


class Rows(NamedTuple):
    """The pairs of a split data set, in the order of its rows.

    Attributes:
      user: `[n]` int32, the client.
      gaps: `[n, d]`, the features of the preferred answer minus those of the other one: the length,
        on PersonaFeedback both cosines, and the features of the answer.
      train: `[n]` bool, the training pairs.
      validation: `[n]` bool, the validation pairs.
      test: `[n]` bool, the test pairs.
    """

    user: np.ndarray
    gaps: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def rows_of(dataset: FederatedDataset) -> Rows:
    """Returns the pairs of a data set of preferences."""
    user = np.empty(len(dataset.targets), np.int32)
    parts = np.zeros((3, len(user)), bool)
    for part, split in zip(parts, (dataset.train, dataset.validation, dataset.test), strict=True):
        client, row = split.examples()
        user[row], part[row] = client, True
    inputs = dataset.inputs.astype(np.float64)
    return Rows(user, inputs[:, 0] - inputs[:, 1], *parts)


def by_user(longer: np.ndarray, user: np.ndarray, train: np.ndarray, prior: float) -> np.ndarray:
    """Returns `[n]`, the sign of the length weight of each pair's user: 1 prefers longer answers.

        sign(prior q + n_longer - (prior (1 - q) + n_shorter)),   q of all training pairs

    Args:
      longer: `[n]`, whether the preferred answer is longer: 1, 0, or 0.5 for equal lengths.
      user: `[n]` integers.
      train: `[n]` bool, the pairs that are used.
      prior: Number of pairs as which the fraction `q` of all users counts.
    """
    of_all = longer[train].mean()
    counts = np.bincount(user[train], minlength=user.max() + 1)
    sums = np.bincount(user[train], longer[train], minlength=user.max() + 1)
    return np.sign((prior * of_all + sums) / (prior + counts) - 0.5)[user]


def fit(design: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Returns the weights `[d]` of a logistic reward, by Newton's method.

        min_w sum_n log(1 + exp(-<w, x_n>)) + 1/2 sum_j penalty_j w_j^2

    Args:
      design: `[n, d]`, features of the preferred answers minus those of the others.
      penalty: `[d]`, above 0.
    """
    weights = np.zeros(design.shape[1])
    for _ in range(25):
        wrong = special.expit(-design @ weights)
        slope = penalty * weights - design.T @ wrong
        curvature = (design * (wrong * (1 - wrong))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, slope)
        weights = weights - step
        if np.abs(step).max() < 1e-8:
            break
    return weights


def margins(rows: Rows, cosines: bool) -> dict[str, np.ndarray]:
    """Returns the margins `[n]` of all rewards that this script computes.

    Args:
      rows: The pairs of all users.
      cosines: Whether the second and the third feature are the cosines with the personas.
    """
    length = rows.gaps[:, 0]
    found = {"longer answer": length}
    longer = wins(length)

    def validated(score, values):
        """Returns the margins with the largest accuracy on validation pairs."""
        tried = [score(value) for value in values]
        return max(tried, key=lambda margin: wins(margin)[rows.validation].mean())

    found["longer answer by user"] = validated(
        lambda prior: by_user(longer, rows.user, rows.train, prior) * length, _PRIORS
    )
    if cosines:
        found["own persona"], found["mean persona"] = rows.gaps[:, 1], rows.gaps[:, 2]
    deviation = rows.gaps[rows.train].std(axis=0)
    design = rows.gaps / np.where(deviation > 1e-9, deviation, 1)

    def reward(penalty):
        weights = fit(design[rows.train], np.full(design.shape[1], penalty))
        return design @ weights

    found["length + features"] = common = validated(reward, _PENALTIES)

    def with_length(penalty):
        """Adds to the common reward a length weight of each user."""
        total = common.copy()
        for user in np.unique(rows.user):
            own = rows.user == user
            x, offset = design[own & rows.train, 0], common[own & rows.train]
            weight = 0.0
            for _ in range(50):
                wrong = special.expit(-(offset + weight * x))
                slope = penalty * weight - np.sum(wrong * x)
                curvature = penalty + np.sum(wrong * (1 - wrong) * x**2)
                weight -= np.clip(slope / curvature, -1, 1)
            total[own] += weight * design[own, 0]
        return total

    found["... and length by user"] = validated(with_length, _PENALTIES)
    return found


def of_runs(directory: pathlib.Path, dataset: FederatedDataset, seed: int) -> dict[str, np.ndarray]:
    """Returns the number of correct test pairs `[clients]` of each method in a work directory.

    Args:
      directory: The work directory of compare.py or copl.py.
      dataset: The split data set with this seed.
      seed: The seed of the runs.

    Raises:
      UserError: There are no finished runs with this seed, or they have other splits.
    """
    found = {}
    for path in sorted(directory.glob(f"*/seed_{seed}/clients.npz")):
        with np.load(path) as arrays:
            scores = arrays["personal_test_accuracy"]
            same = all(
                np.array_equal(arrays[f"{part}_size"], getattr(dataset, part).sizes)
                for part in ("train", "test")
            )
        if not same:
            raise UserError(
                f"{path} has other users or splits than this config with seed {seed}: pass "
                "the config and the keys of the runs."
            )
        name = path.parents[1].name
        title = ALGORITHMS[name].title if name in ALGORITHMS else name
        sizes = dataset.test.sizes
        found[f"{title} ({directory.name})"] = np.where(sizes > 0, scores * sizes, 0.0)
    if not found:
        raise UserError(
            f"{directory} has no finished run with seed {seed}: run compare.py or copl.py with the "
            f"same config and --workdir={directory}."
        )
    return found


def accuracies(
    datasets: dict[int, FederatedDataset], cosines: bool, runs: list[pathlib.Path]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the accuracy `[users]` of each row, over the tested pairs of all splits.

    Args:
      datasets: The split data set of each seed, with the same clients.
      cosines: As in `margins`.
      runs: The work directories of further rows.

    Returns:
      `{row: [users]}` of users with a tested pair, and their number of tested pairs.

    Raises:
      UserError: A method was not run with all seeds.
    """
    of_seeds, counts = [], 0
    for seed, dataset in datasets.items():
        rows = rows_of(dataset)
        tested = rows.user[rows.test]
        correct = {
            name: np.bincount(tested, wins(margin)[rows.test], minlength=dataset.num_clients)
            for name, margin in margins(rows, cosines).items()
        }
        for directory in runs:
            correct |= of_runs(directory, dataset, seed)
        of_seeds.append(correct)
        counts = counts + dataset.test.sizes
    names = list(dict.fromkeys(name for correct in of_seeds for name in correct))
    for name in names:
        absent = [seed for seed, of in zip(datasets, of_seeds, strict=True) if name not in of]
        if absent:
            raise UserError(
                f"{name} has no finished run with seed {absent[0]}: run it with all seeds of the "
                "config, with a lower learning rate if it diverged."
            )
    kept = counts > 0
    sums = {name: sum(correct[name] for correct in of_seeds) for name in names}
    return {name: of[kept] / counts[kept] for name, of in sums.items()}, counts[kept]


def table(found: dict[str, np.ndarray], seed: int) -> list[str]:
    """Returns the lines of a table with a row for each accuracy of users `[users]`."""
    references = [name for name in _REFERENCES if name in found]
    gains = " | ".join(f"gain over {name}" for name in references)
    lines = [
        f"| reward | accuracy | interval | {gains} |",
        "|---|" + "---:|" * (2 + len(references)),
    ]
    for name, values in found.items():
        low, high = bootstrap.interval_of_mean(values, seed)
        shown = [tables.mean_gain(values - found[reference], seed) for reference in references]
        lines.append(
            f"| {name} | {values.mean():.3f} | {low:.3f} to {high:.3f} | {' | '.join(shown)} |"
        )
    return lines


def whole_table(pairs: preferences.Pairs) -> list[str]:
    """Returns the lines of the accuracies of PersonaFeedback without training, on all pairs."""
    lines = ["| reward | easy | mid | hard |", "|---|---:|---:|---:|"]
    gaps = pairs.length[:, 0] - pairs.length[:, 1]
    rows = {
        "longer answer": wins(gaps),
        "own persona": wins(pairs.own[:, 0] - pairs.own[:, 1]),
        "mean persona": wins(pairs.mean[:, 0] - pairs.mean[:, 1]),
    }
    for name, values in rows.items():
        cells = [f"{values[pairs.tier == tier].mean():.3f}" for tier in range(3)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def define_flags() -> None:
    """Defines the flags of this script."""
    app.define_config()
    flags.DEFINE_list("runs", [], "Work directories of compare.py and copl.py, for further rows.")
    flags.DEFINE_bool("all_pairs", False, "Print PersonaFeedback's tiers without training instead.")
    flags.DEFINE_integer("seed", 0, "The seed of the bootstrap.", lower_bound=0)


def main() -> None:
    """Runs the script."""
    config, given = app.config(), flags.FLAGS
    if given.all_pairs:
        print("\n".join(whole_table(preferences.read_persona_feedback(config.data.dir))))
        return
    name = config.data.name
    options = config.data.options.get(name, {})
    if name not in _FEATURES or options.features != _FEATURES[name]:
        raise UserError(
            "preferences.py needs config.data.name=prism_pairs with features=both or "
            "persona_feedback with features=all, in whose inputs the length is first."
        )
    if config.data.unseen_fraction or not config.data.validation_fraction:
        raise UserError(
            "Set config.data.unseen_fraction=0, and config.data.validation_fraction above 0, on "
            "which penalties are chosen."
        )
    datasets = {
        seed: experiment.build_dataset(config_runs.of_run(config, config.algorithms[0], seed))
        for seed in config.seeds
    }
    runs = [pathlib.Path(directory) for directory in given.runs]
    found, counts = accuracies(datasets, name == "persona_feedback", runs)
    print(f"{len(counts)} users, {int(counts.sum()):,} tested pairs in all splits\n")
    print("\n".join(table(found, given.seed)))


if __name__ == "__main__":
    app.run(main, define_flags)
