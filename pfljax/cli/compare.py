r"""Runs several methods with several seeds on one federated data set, and compares them.

    python experiments/compare.py --config=configs/quickstart.py --workdir=WORKDIR \
        --config.algorithms="('local','fedavg','ditto')" --config.seeds="(0,1,2)"

Each run has a separate work directory, `WORKDIR/METHOD/seed_SEED`. Finished runs are not repeated
and interrupted ones are resumed, so the same command continues after a preemption, and adding a
method or a seed runs only the new combinations. The command writes `comparison.md`,
`comparison.csv`, `curves.png`, `clients.png` and plots of the partition, and prints the table,
which includes all comparable runs in WORKDIR. With `--vmap_seeds` the seeds of a method share one
program.

A seed determines all randomness, including the partition and the splits;
`--config.seeds_vary=training` uses those of `config.data.seed`. A run that diverges is marked in
the table, the other runs continue, and the final exit status is 2.
"""

from __future__ import annotations

import jax
from absl import flags

from pfljax.cli import app
from pfljax.errors import DivergedError
from pfljax.report import comparison as report
from pfljax.training import comparison
from pfljax.training.run import locks
from pfljax.training.study import config as config_lib


def define_flags() -> None:
    """Defines the flags of this command."""
    app.define_study()
    flags.DEFINE_bool(
        "vmap_seeds", False, "Train all seeds of a method in one program, compiled once."
    )


def main() -> None:
    """Runs the command."""
    config, directory = app.study()
    config_lib.check(config)  # before the directory is created
    with locks.hold(directory):
        with app.progress(config.rounds) as add_bar:
            runs = comparison.run(
                config,
                directory,
                vmap_seeds=flags.FLAGS.vmap_seeds,
                add_progress=add_bar,
                say=app.say,
            )
        if jax.process_index() != 0:
            return
        written = report.write(config, directory, runs.first_dataset, changed=bool(runs.datasets))
    app.say(written.table)
    for note in written.notes:
        app.say(note)
    app.say(f"{', '.join(written.files[:-1])} and {written.files[-1]} are in {directory}")
    if written.diverged:
        raise DivergedError(
            f"Diverged: {', '.join(written.diverged)}; lower their learning rates or "
            "hyper-parameters, and use another work directory for them. All other runs are kept."
        )
