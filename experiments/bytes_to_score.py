"""Bytes that a client sends and receives until finished runs reach a validation score.

    python experiments/bytes_to_score.py --config=configs/fedpara.py --workdir=WORKDIR --target=0.8

WORKDIR is that of compare.py with the same config, with all its scenarios. A run reaches the target
in the first evaluated round in which the validation score of its personalized models is at least
as good, so that `config.eval_every` limits the precision; the models of a method with one model for
all clients are that model. Prints a table in Markdown, with means over seeds: the round, the bytes
of one client that takes part in every round until then, and the test score in that round. Rounds
and bytes are those of the config's seeds that reach the target, whose number is in the table.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from absl import flags

from pfljax import metrics
from pfljax.cli import app
from pfljax.errors import UserError
from pfljax.report import finished
from pfljax.training.study import config_runs


class Reached(NamedTuple):
    """Where a run reaches the target.

    Attributes:
      round: The number of rounds.
      upload: Bytes that a client has sent by then.
      download: Bytes that a client has received by then.
      test: The test score in that round.
    """

    round: int
    upload: float
    download: float
    test: float


def reach(run: finished.Run, target: float, mean: str) -> Reached | None:
    """Returns where a run reaches the target; None if it never does, or diverged.

    Args:
      run: The run.
      target: The validation score; a fraction if the score is shown in percent.
      mean: The mean over clients, 'weighted' or 'unweighted'.
    """
    if run.diverged:
        return None
    score, sign = run.result["score_name"], 1 if run.result["more_is_better"] else -1
    for row in run.rows:
        found = row[f"personal/validation_{score}_{mean}"]
        if found is not None and sign * found >= sign * target:
            sent, received = run.result["upload_bytes"], run.result["download_bytes"]
            test = row[f"personal/test_{score}_{mean}"]
            return Reached(row["round"], row["round"] * sent, row["round"] * received, test)
    return None


def line(names: list[str], runs: list[finished.Run], target: float, mean: str) -> str:
    """Returns the line of the runs of a method.

    Args:
      names: The first cells.
      runs: One run for each seed.
      target: As for `reach`.
      mean: As for `reach`.
    """
    found = [reached for run in runs if (reached := reach(run, target, mean))]
    cells = [*names, f"{len(found)} of {len(runs)}"]
    if not found:
        return "| " + " | ".join([*cells, "-", "-", "-", "-"]) + " |"
    means = Reached(*np.mean(found, axis=0))
    percent = metrics.is_percent(runs[0].result["score_name"])
    test = f"{100 * means.test:.2f} %" if percent else f"{means.test:.4g}"
    numbers = [f"{means.round:.1f}", f"{means.upload / 1e6:.3g}", f"{means.download / 1e6:.3g}"]
    return "| " + " | ".join([*cells, *numbers, test]) + " |"


def define_flags() -> None:
    """Defines the flags of this script."""
    app.define_study()
    flags.DEFINE_float("target", None, "The validation score, a fraction for an accuracy.")


def main() -> None:
    """Runs the script."""
    config, directory = app.study()
    if flags.FLAGS.target is None:
        raise UserError("Pass the validation score to reach with --target, such as --target=0.8.")
    titles = ("scenario", "method", "seeds", "rounds", "upload (MB)", "download (MB)", "test")
    lines = ["| " + " | ".join(titles) + " |", "|---|---" + "|---:" * (len(titles) - 2) + "|"]
    for scenario, own in config_runs.scenarios(config).items():
        for method in own.algorithms:
            directories = [directory / scenario / method / f"seed_{seed}" for seed in own.seeds]
            missing = [path for path in directories if not (path / "result.json").exists()]
            if missing:
                raise UserError(f"{missing[0]} has no finished run; run compare.py first.")
            runs = [finished.read_run(path) for path in directories]
            lines.append(line([scenario, method], runs, flags.FLAGS.target, own.selection.mean))
    print("\n".join(lines))


if __name__ == "__main__":
    app.run(main, define_flags)
