"""Rewards of answers on PRISM and PersonaFeedback, beside the length of the answers.

    python experiments/preferences.py --data_dir=DIRECTORY --data=prism
    python experiments/preferences.py --data_dir=DIRECTORY --data=persona

DIRECTORY has the data sets `prism_pairs` and `persona_feedback`. Rows of the tables in Markdown:

    longer answer: the answer with more characters
    longer answer by user: longer or shorter, by the user's training pairs and the prior of all
        users' training pairs, which counts as some pairs (chosen on validation pairs)
    own persona, mean persona: the answer whose features have the larger cosine with the persona of
        the user, or with the mean of all personas (PersonaFeedback only)
    length + features: a logistic reward of all users, of the logarithm of the length and the
        features of the answer; its L2 penalty is chosen on validation pairs
    ... and length by user: the same with a length weight of each user in addition, with a penalty
        of its own

Test questions are 30 % of all questions, so that no answer to a tested question is trained on;
validation questions are a fifth of the others. Accuracies are means over users of a user's accuracy
on all tested pairs of `--splits` splits, of users with ten pairs or more, with the 95 % interval of
a bootstrap over users. The gain over the longer answer is paired; only an interval that excludes 0
is a claim. Equal lengths count half.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from absl import flags
from scipy import special

from pfljax.cli import app
from pfljax.data.sources import preferences
from pfljax.errors import UserError
from pfljax.metrics import bootstrap
from pfljax.ops.preference import wins
from pfljax.report import tables

_TEST, _VALIDATION = 0.3, 0.2
_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
_PRIORS = (1.0, 3.0, 10.0, 30.0, 100.0)


class Parts(NamedTuple):
    """The rows of pairs in each part of a split, `[n]` bool."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_questions(question: np.ndarray, seed: int) -> Parts:
    """Returns a split in which all pairs of a question are in one part.

    Args:
      question: `[n]` integers, the question of each pair.
      seed: The seed of the split.
    """
    order = np.random.default_rng(seed).permutation(np.unique(question))
    tests = round(_TEST * len(order))
    validations = round(_VALIDATION * (len(order) - tests))
    test = np.isin(question, order[:tests])
    validation = np.isin(question, order[tests : tests + validations])
    return Parts(~test & ~validation, validation, test)


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


def margins(pairs: preferences.Pairs, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the margins `[n]` of all rows of the table, and which pairs are tested.

    Args:
      pairs: The pairs of all users.
      seed: The seed of the split.
    """
    parts = split_questions(pairs.question, seed)
    gaps = (pairs.length[:, 0] - pairs.length[:, 1]).astype(float)
    found = {"longer answer": gaps}
    longer = wins(gaps)

    def validated(score, values):
        """Returns the value with the largest accuracy on validation pairs, and its margins."""
        tried = {value: score(value) for value in values}
        return max(tried.values(), key=lambda m: wins(m)[parts.validation].mean())

    signs = validated(lambda prior: by_user(longer, pairs.user, parts.train, prior) * gaps, _PRIORS)
    found["longer answer by user"] = signs
    if pairs.own.any():
        found["own persona"] = pairs.own[:, 0] - pairs.own[:, 1]
        found["mean persona"] = pairs.mean[:, 0] - pairs.mean[:, 1]
    logs = np.log1p(pairs.length)
    columns = [(logs[:, 0] - logs[:, 1])[:, None], pairs.answer[:, 0] - pairs.answer[:, 1]]
    if pairs.own.any():
        columns.insert(1, np.stack([found["own persona"], found["mean persona"]], axis=1))
    design = np.concatenate(columns, axis=1)
    design = design / np.maximum(design[parts.train].std(axis=0), 1e-9)

    def reward(penalty):
        weights = fit(design[parts.train], np.full(design.shape[1], penalty))
        return design @ weights

    found["length + features"] = common = validated(reward, _PENALTIES)

    def with_length(penalty):
        """Adds to the common reward a length weight of each user."""
        total = common.copy()
        for user in np.unique(pairs.user):
            own = pairs.user == user
            x, offset = design[own & parts.train, 0], common[own & parts.train]
            weight = 0.0
            for _ in range(50):
                wrong = special.expit(-(offset + weight * x))
                slope = penalty * weight - np.sum(wrong * x)
                curvature = penalty + np.sum(wrong * (1 - wrong) * x**2)
                weight -= np.clip(slope / curvature, -1, 1)
            total[own] += weight * design[own, 0]
        return total

    found["... and length by user"] = validated(with_length, _PENALTIES)
    return found, parts.test


def accuracies(
    pairs: preferences.Pairs, splits: int, least: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the accuracy `[users]` of each row, over the tested pairs of all splits.

    Args:
      pairs: The pairs of all users.
      splits: Number of splits, with the seeds 0, 1, ...
      least: Smallest number of pairs of a user that counts.

    Returns:
      `{row: [users]}`, and the number of tested pairs of these users, over all splits.
    """
    sums: dict[str, np.ndarray] = {}
    users = np.unique(pairs.user)
    sizes = np.bincount(pairs.user)
    counts = np.zeros(len(sizes))
    for seed in range(splits):
        found, test = margins(pairs, seed)
        counts += np.bincount(pairs.user[test], minlength=len(sizes))
        for name, margin in found.items():
            own = np.bincount(pairs.user[test], wins(margin)[test], minlength=len(sizes))
            sums[name] = sums.get(name, 0) + own
    kept = users[(sizes[users] >= least) & (counts[users] > 0)]
    return {name: of[kept] / counts[kept] for name, of in sums.items()}, counts[kept]


def table(found: dict[str, np.ndarray], seed: int) -> list[str]:
    """Returns the lines of a table with a row for each accuracy of users `[users]`."""
    reference = next(iter(found.values()))
    lines = [
        "| reward | accuracy | interval | gain over the longer answer |",
        "|---|---:|---:|---:|",
    ]
    for name, values in found.items():
        low, high = bootstrap.interval_of_mean(values, seed)
        shown = tables.mean_gain(values - reference, seed)
        lines.append(f"| {name} | {values.mean():.3f} | {low:.3f} to {high:.3f} | {shown} |")
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
    flags.DEFINE_string("data_dir", None, "The directory of the data sets.")
    flags.DEFINE_enum("data", "prism", ["prism", "persona"], "The data set.")
    flags.DEFINE_integer("splits", 5, "Number of splits.", lower_bound=1)
    flags.DEFINE_integer("least", 10, "Smallest number of pairs of a user.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "The seed of the bootstrap.", lower_bound=0)


def main() -> None:
    """Runs the script."""
    given = flags.FLAGS
    if not given.data_dir:
        raise UserError("Pass the directory of the data sets with --data_dir=DIR.")
    if given.data == "prism":
        of_all = {"PRISM": preferences.read_prism_pairs(given.data_dir)}
    else:
        whole = preferences.read_persona_feedback(given.data_dir)
        print("\n".join(["All pairs, without training:", "", *whole_table(whole), ""]))
        of_all = {
            name: preferences.Pairs(*(array[whole.tier == number] for array in whole))
            for number, name in enumerate(preferences.TIERS)
        }
    for name, pairs in of_all.items():
        found, counts = accuracies(pairs, given.splits, given.least)
        print(f"{name}: {len(counts)} users, {int(counts.sum()):,} tested pairs in all splits\n")
        print("\n".join([*table(found, given.seed), ""]))


if __name__ == "__main__":
    app.run(main, define_flags)
