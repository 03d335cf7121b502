r"""Evaluates the models of a run at its latest checkpoint.

    python experiments/evaluate.py --workdir=WORKDIR --output=clients.csv

WORKDIR is the work directory of a run of `train`, or `METHOD/seed_SEED` in that of a comparison;
its config is read from there, and files of the user are imported as before. With `--best` the round
with the best validation score is evaluated, if the run was trained with `--config.keep_best=True`.
The command prints all metrics of all models, and with `--output` writes a row for each client. To
train more rounds, run `train` with `--resume` and a larger `--config.rounds`.
"""

from __future__ import annotations

import pathlib

import numpy as np
import rich.box
import rich.table
from absl import flags

from pfljax import metrics
from pfljax.api.results import frame_of_clients
from pfljax.cli import app
from pfljax.errors import UserError
from pfljax.training.run import reopen, results, workdir


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("workdir", None, "The work directory of the run.")
    flags.DEFINE_bool("best", False, "Evaluate the round with the best validation score.")
    flags.DEFINE_string("output", None, "A CSV file for the metrics of each client.")


def main() -> None:
    """Runs the command."""
    if not flags.FLAGS.workdir:
        raise UserError("Pass the work directory of a run with --workdir=DIR.")
    directory = pathlib.Path(flags.FLAGS.workdir)
    workdir.require_usable(directory)
    with reopen.reopen(directory, best=flags.FLAGS.best) as opened:
        evaluation = opened.evaluate()
        row = results.metrics_row(opened.experiment, opened.round, evaluation, {})
        arrays = results.client_arrays(opened.experiment, evaluation)
        task = opened.experiment.task
    app.say(_table(f"{opened.experiment.config.algorithm}, round {opened.round}", row, task.score))
    if flags.FLAGS.output:
        _write(pathlib.Path(flags.FLAGS.output), arrays)
        app.say(f"metrics of each client in {flags.FLAGS.output}")


def _table(title: str, row: dict, score: str) -> rich.table.Table:
    """Returns a line for each model, split and metric: the summary over clients."""
    table = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD)
    for name in ("model", "split", "metric"):
        table.add_column(name)
    for field in metrics.Summary._fields:
        table.add_column(field.replace("_", " "), justify="right")
    last = metrics.Summary._fields[-1]
    for key in row:
        if not key.endswith(f"_{last}"):
            continue
        prefix = key.removesuffix(last)
        model, _, rest = prefix.rstrip("_").partition("/")
        split, _, name = rest.removeprefix("unseen_").partition("_")
        who = "unseen " if rest.startswith("unseen_") else ""
        percent = metrics.is_percent(name)
        shown = [
            f"{100 * row[prefix + field]:.2f} %" if percent else f"{row[prefix + field]:.4g}"
            for field in metrics.Summary._fields
        ]
        named = "personalized" if model == "personal" else model
        marked = f"{name} (score)" if name == score else name
        table.add_row(named, f"{who}{split}", marked, *shown)
    return table


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        frame_of_clients(arrays).to_csv(path, index=False)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); choose another --output."
        ) from error
