r"""Trains one method with several hyper-parameter values in one program, and selects the best.

    python experiments/sweep.py --config=configs/quickstart.py --workdir=WORKDIR \
        --config.algorithm=ditto --values=hparams.ditto.lam=0.01,0.1,1 \
        --values=client_optimizer.learning_rate=0.02,0.05

`--every_method` does so for each of `config.algorithms`, with the same tuning budget for all of
them; the key `learning_rate` then means `learning_rates.METHOD`:

    python experiments/sweep.py --config=configs/quickstart.py --workdir=WORKDIR --every_method \
        --values=learning_rate=0.01,0.03,0.1,0.3

Every combination runs with every seed of `config.seeds`, each in a separate work directory,
`WORKDIR/METHOD/KEY=VALUE.../seed_SEED`. The best combination is selected on validation examples:
the best score of the personalized models over all rounds, averaged over the seeds. Test examples
are reported only. Finished runs are not repeated. The command prints the table and writes it to
`sweep_METHOD.csv`. All seeds use the partition of `config.data.seed`, unless `--vary_data` is
given. `config.selection` ranks by the unweighted mean over clients, or by the last round.
"""

from __future__ import annotations

import math

import jax
import rich.table
from absl import flags

from pfljax import metrics
from pfljax.cli import app
from pfljax.errors import DivergedError, UserError
from pfljax.training import sweep
from pfljax.training.run import compiling, locks
from pfljax.training.study import config_checks


def define_flags() -> None:
    """Defines the flags of this command."""
    app.define_study()
    flags.DEFINE_multi_string(
        "values", [], "KEY=VALUE,VALUE,...; repeat the flag to try all combinations."
    )
    flags.DEFINE_bool(
        "vary_data", False, "A partition and splits of its own for each seed, as in compare.py."
    )
    flags.DEFINE_bool(
        "every_method", False, "Sweep each of config.algorithms, with the same values."
    )


def main() -> None:
    """Runs the command."""
    config, directory = app.study()
    config_checks.check(config)
    if not flags.FLAGS.values:
        raise UserError("Pass the values to try, such as --values=hparams.ditto.lam=0.01,0.1,1.")
    found, diverged = [], []
    methods = config.algorithms if flags.FLAGS.every_method else (config.algorithm,)
    for name in methods:
        if compiling.programs_fill_memory():
            compiling.free_programs()
        own = sweep.changed(config, {"algorithm": name}, config.seed)
        grid = dict(sweep.parse(text, own) for text in flags.FLAGS.values)
        with locks.hold(directory), app.progress(config.rounds) as add_bar:
            vary = flags.FLAGS.vary_data
            swept = sweep.run(own, directory, grid, vary_data=vary, add_progress=add_bar)
        app.say(_table(name, swept))
        if swept.best is None:
            diverged.append(name)
        else:
            found.append(swept)
    if jax.process_index() == 0:
        for swept in found:
            best = swept.best.settings
            words = " ".join(f"--config.{key}={value!r}" for key, value in best.items())
            edge = ", ".join(swept.at_the_edge)
            app.say(f"best: {words}{f' (at the edge of the values tried: {edge})' * bool(edge)}")
    if diverged:
        raise DivergedError(f"All values diverged for {', '.join(diverged)}; try lower ones.")


def _table(algorithm: str, swept: sweep.Sweep) -> rich.table.Table:
    table = rich.table.Table(title=f"{algorithm}, best validation {swept.score} first")
    percent = metrics.is_percent(swept.score)
    unit, factor, form = ("%", 100, ".2f") if percent else (swept.score, 1, ".4g")
    for key in (*swept.settings[0].settings, f"validation ({unit})", f"test ({unit})"):
        table.add_column(key, justify="right")
    for setting, *means in swept.settings:
        shown = ["diverged" if math.isnan(mean) else f"{factor * mean:{form}}" for mean in means]
        table.add_row(*(repr(value) for value in setting.values()), *shown)
    if not math.isnan(swept.each_client):
        table.caption = (
            f"test {factor * swept.each_client:{form}} if each client has the values with its own "
            "best validation score"
        )
    return table
