"""Figures of language models as judges of PRISM's pairs, from their recorded judgements.

    python experiments/judge.py --data_dir=DIRECTORY

DIRECTORY has the data set `prism_pairs`; nothing is trained, and no model is called. Prints two
tables in Markdown, of PRISM and of two further tasks, with a row for each judge:

    correct: the fraction of judgements that are correct
    interval: its 95 % interval, by a bootstrap over persons (for judges with known persons)
    A/B: the fraction among the judgements whose truth is one of the answers, not a tie
    certain: the fraction among the judgements with a stated certainty of 80 or more (`--certainty`)
    stated: number of judgements with a stated certainty, over which the last two figures are
    AURC: area under the risk-coverage curve; it is the error rate for certainties that say nothing
    ECE: expected calibration error of the stated certainties, ten bins

The row "longer answer" prefers the answer with more characters on all pairs with a preference,
equal lengths counting half. Each fraction is followed by its number of judgements.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from absl import flags

from pfljax.cli import app
from pfljax.data.sources import preferences
from pfljax.errors import UserError
from pfljax.metrics import bootstrap, judge


class Figures(NamedTuple):
    """The figures of a judge; fractions with their number of judgements.

    Attributes:
      correct: Fraction of correct judgements.
      interval: Its 95 % interval; NaN for judgements of unknown persons.
      preferred: Fraction of correct ones among those whose truth is one of the two answers.
      certain: Fraction of correct ones among those with some certainty.
      stated: Number of judgements with a certainty.
      area: Area under the risk-coverage curve of the judgements with a certainty; NaN without any.
      calibration: Expected calibration error of these; NaN without any.
    """

    correct: tuple[float, int]
    interval: tuple[float, float]
    preferred: tuple[float, int]
    certain: tuple[float, int]
    stated: int
    area: float
    calibration: float


def figures(
    found: preferences.Judgements, number: int, certainty: int = 80, seed: int = 0
) -> Figures:
    """Returns the figures of a judge.

    Args:
      found: The judgements of all judges.
      number: The index of the judge.
      certainty: The least certainty of `Figures.certain`.
      seed: The seed of the bootstrap.
    """
    own = found.judge == number
    correct, stated, truth = found.correct[own], found.certainty[own], found.truth[own]
    user, known = found.user[own], stated >= 0
    area = calibration = np.nan
    if known.any():
        area = judge.risk_coverage(correct[known], stated[known]).area
        calibration = judge.calibration_error(correct[known], stated[known] / 100)[0]
    # Judgements of unknown persons count as those of different persons.
    persons = np.where(user >= 0, user, 1 + user.max(initial=0) + np.arange(len(user)))
    interval = (np.nan, np.nan)
    if (user >= 0).any():
        _, index = np.unique(persons, return_inverse=True)
        interval = bootstrap.interval_of_ratio(
            np.bincount(index, correct), np.bincount(index), seed
        )
    return Figures(
        correct=judge.agreement(correct, stated, -1),
        interval=interval,
        preferred=judge.agreement(correct, truth < preferences.TIE, least=True),
        certain=judge.agreement(correct, stated, certainty),
        stated=int(known.sum()),
        area=area,
        calibration=calibration,
    )


def longer_answer(pairs: preferences.Pairs) -> tuple[float, int]:
    """Returns the fraction of pairs whose longer answer is preferred, equal ones counting half."""
    gaps = pairs.length[:, 0] - pairs.length[:, 1]
    return float(np.mean((gaps > 0) + 0.5 * (gaps == 0))), len(gaps)


def row(name: str, of_judge: Figures) -> str:
    """Returns the line of a judge, with three decimals."""

    def shown(value):
        return "-" if np.isnan(value) else f"{value:.3f}"

    fractions = (of_judge.correct, of_judge.preferred, of_judge.certain)
    correct, preferred, certain = (
        [shown(value), f"{count:,}" if count else "-"] for value, count in fractions
    )
    low, high = of_judge.interval
    interval = "-" if np.isnan(low) else f"{low:.3f} to {high:.3f}"
    numbers = [f"{of_judge.stated:,}", shown(of_judge.area), shown(of_judge.calibration)]
    return f"| {' | '.join([name, *correct, interval, *preferred, *certain, *numbers])} |"


def table(found: preferences.Judgements, certainty: int, seed: int) -> list[str]:
    """Returns the lines of the table of some judges."""
    titles = ["judge", "correct", "n", "interval", "A/B", "n", f"certain ({certainty})", "n"]
    lines = [f"| {' | '.join([*titles, 'stated', 'AURC', 'ECE'])} |", "|---" + "|---:" * 10 + "|"]
    for number, name in enumerate(found.names):
        lines.append(row(name, figures(found, number, certainty, seed)))
    return lines


def define_flags() -> None:
    """Defines the flags of this script."""
    flags.DEFINE_string("data_dir", None, "The directory of the data set prism_pairs.")
    flags.DEFINE_integer("certainty", 80, "The least certainty of the column certain.", 1, 100)
    flags.DEFINE_integer("seed", 0, "The seed of the bootstrap.", lower_bound=0)


def main() -> None:
    """Runs the script."""
    given = flags.FLAGS
    if not given.data_dir:
        raise UserError("Pass the directory of the data set prism_pairs with --data_dir=DIR.")
    of_prism = preferences.read_judgements(given.data_dir)
    longer = longer_answer(preferences.read_prism_pairs(given.data_dir, known=False))
    unknown = (np.nan, np.nan)
    of_length = Figures(longer, unknown, longer, (np.nan, 0), 0, *unknown)
    lines = [*table(of_prism, given.certainty, given.seed), row("longer answer", of_length)]
    others = preferences.read_other_judgements(given.data_dir)
    print("\n".join([*lines, "", *table(others, given.certainty, given.seed)]))


if __name__ == "__main__":
    app.run(main, define_flags)
