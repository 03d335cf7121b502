"""Accuracy on a new user's answers against the number of questions that were put to the user.

    python experiments/elicitation.py --data_dir=DIRECTORY --data=movielens
    python experiments/elicitation.py --data=simulated

Questions are films ("do you like it?": a rating of 4 or more), the 100 that most users rated, of
users with 30 or more of these ratings; or 60 pairs of answers of simulated users ("do you prefer
the first one?"). Each of five folds of users is held out once; half of a user's known answers are
predicted, and the others may be asked. Prints a table in Markdown: for each model of answers and
policy of questions (`pfljax.metrics.elicitation`), the mean accuracy over users after 0, 1, ...
questions, and the gain after all questions over the random policy with its 95 % interval, a paired
bootstrap over users. Without questions, a model predicts what most known users answer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from pfljax.cli import app
from pfljax.data import SOURCES
from pfljax.data.sources import simulated_preferences
from pfljax.errors import UserError
from pfljax.metrics import elicitation
from pfljax.report import tables

_FILMS, _LEAST, _LIKED = 100, 30, 4.0
_USERS, _PAIRS = 1000, 60


def liked_films(data_dir: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[U, 100]` each: whether a user likes a film, and whether the user rated it."""
    pool = SOURCES["movielens"](data_dir)
    users, films = pool.vocabulary
    ratings = np.zeros((users, films), np.float32)
    ratings[pool.inputs[:, 0], pool.inputs[:, 1]] = pool.targets
    most = np.argsort(-np.sum(ratings > 0, axis=0), kind="stable")[:_FILMS]
    known = ratings[:, most] > 0
    enough = known.sum(axis=1) >= _LEAST
    return (ratings[:, most] >= _LIKED)[enough].astype(np.int32), known[enough]


def preferred_answers() -> tuple[np.ndarray, np.ndarray]:
    """Returns `[1000, 60]` each: whether a simulated user prefers the first answer, and True."""
    made = simulated_preferences.simulate(users=_USERS, pairs=1, prompts=_PAIRS, answers=2)
    gaps = (made.rewards[:, 0] - made.rewards[:, 1]) @ made.weights.T
    return (gaps.T > 0).astype(np.int32), np.ones((_USERS, _PAIRS), bool)


def curves(
    answers: np.ndarray, known: np.ndarray, folds: int, questions: int, seed: int = 0
) -> dict[tuple[str, str], np.ndarray]:
    """Returns `{(model, policy): [questions + 1, users]}`, the accuracies of held-out users.

    Args:
      answers: `[U, I]` of 0 and 1.
      known: `[U, I]` bool.
      folds: Number of folds; each user is held out in one of them.
      questions: Number of questions.
      seed: The seed of the folds, of the tested answers and of random questions.
    """
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(answers))
    for fold in range(folds):
        new = order[fold::folds]
        others = np.setdiff1d(order, new)
        of_others = elicitation.statistics(answers[others], known[others])
        tested = known[new] & (rng.uniform(size=known[new].shape) < 0.5)
        for model in elicitation.MODELS:
            for policy in elicitation.POLICIES:
                curve = elicitation.accuracy_by_questions(
                    of_others,
                    jnp.asarray(answers[new]),
                    jnp.asarray(known[new]),
                    jnp.asarray(tested),
                    jax.random.fold_in(jax.random.key(seed), fold),
                    model=model,
                    policy=policy,
                    questions=questions,
                )
                found.setdefault((model, policy), []).append(np.asarray(curve))
    return {name: np.concatenate(of_folds, axis=1) for name, of_folds in found.items()}


def table(found: dict[tuple[str, str], np.ndarray], seed: int) -> list[str]:
    """Returns the lines of a table of the means over users, and of gains over random questions."""
    questions = len(next(iter(found.values()))) - 1
    numbers = " | ".join(map(str, range(questions + 1)))
    lines = [f"| model | questions | {numbers} | gain over random |"]
    lines.append("|---|---" + "|---:" * (questions + 2) + "|")
    for (model, policy), values in found.items():
        cells = " | ".join(f"{value:.3f}" for value in np.nanmean(values, axis=1))
        gain = (values - found[model, "random"])[-1]
        shown = tables.mean_gain(gain[np.isfinite(gain)], seed)
        lines.append(f"| {model} | {policy} | {cells} | {shown} |")
    return lines


def define_flags() -> None:
    """Defines the flags of this script."""
    flags.DEFINE_string("data_dir", None, "The directory of movielens.")
    flags.DEFINE_enum("data", "simulated", ["simulated", "movielens"], "The data set.")
    flags.DEFINE_integer("folds", 5, "Number of folds of users.", lower_bound=2)
    flags.DEFINE_integer("questions", 5, "Number of questions.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "The seed of the folds and the bootstrap.", lower_bound=0)


def main() -> None:
    """Runs the script."""
    given = flags.FLAGS
    if given.data == "movielens":
        if not given.data_dir:
            raise UserError("Pass the directory of movielens with --data_dir=DIR.")
        answers, known = liked_films(given.data_dir)
    else:
        answers, known = preferred_answers()
    found = curves(answers, known, given.folds, given.questions, given.seed)
    users = next(iter(found.values())).shape[1]
    print(f"{given.data}: {users:,} users, each held out once, {answers.shape[1]} questions\n")
    print("\n".join(table(found, given.seed)))


if __name__ == "__main__":
    app.run(main, define_flags)
