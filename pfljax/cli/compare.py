r"""Runs several methods with several seeds on one federated data set, and compares them.

    python experiments/compare.py --config=configs/quickstart.py --workdir=WORKDIR \
        --config.algorithms="('local','fedavg','ditto')" --config.seeds="(0,1,2)"

Each run has a separate work directory, `WORKDIR/METHOD/seed_SEED`. Finished runs are not repeated
and interrupted ones are resumed, so the same command continues after a preemption, and adding a
method or a seed runs only the new combinations. The command writes `comparison.md`,
`comparison.csv`, `curves.png`, `clients.png` and plots of the partition, and prints the table,
which includes all comparable runs in WORKDIR. With `--vmap_seeds` the seeds of a method share one
program.

With `config.scenarios`, the methods are compared in each of them, in `WORKDIR/SCENARIO`, and
`scenarios.md` has one table of all.

A seed determines all randomness, including the partition and the splits;
`--config.seeds_vary=training` uses those of `config.data.seed`. A run that diverges is marked in
the table, the other runs continue, and the final exit status is 2.
"""

from __future__ import annotations

import contextlib
import pathlib

import jax
from absl import flags

from pfljax.cli import app
from pfljax.errors import DivergedError
from pfljax.report import comparison as report
from pfljax.report import scenarios
from pfljax.training import comparison
from pfljax.training.run import locks
from pfljax.training.study import config_checks, config_runs


def define_flags() -> None:
    """Defines the flags of this command."""
    app.define_study()
    flags.DEFINE_bool(
        "vmap_seeds", False, "Train all seeds of a method in one program, compiled once."
    )


def main() -> None:
    """Runs the command."""
    config, directory = app.study()
    configs = config_runs.scenarios(config)
    for each in configs.values():
        config_checks.check(each)  # before the directory is created
    with contextlib.ExitStack() as locked:
        locked.enter_context(locks.hold(directory))
        for name in configs:
            locked.enter_context(locks.hold(directory / name))
        prepared = {
            name: comparison.prepare(each, directory / name, say=app.say)
            for name, each in configs.items()
        }
        reports = {}
        for name, runs in prepared.items():
            with app.progress(runs.config.rounds) as add_bar:
                comparison.train(
                    runs,
                    vmap_seeds=flags.FLAGS.vmap_seeds,
                    add_progress=_named(name, add_bar),
                )
            if jax.process_index() == 0:
                reports[name] = report.write(
                    runs.config,
                    runs.directory,
                    runs.first_dataset,
                    changed=bool(runs.datasets),
                )
    for name, written in reports.items():
        _show(written, directory / name)
    if len(reports) > 1:
        scenarios.write(directory / scenarios.NAME, reports)
        app.say(scenarios.table(reports))
        app.say(f"{scenarios.NAME} is in {directory}")
    diverged = [
        f"{name}: {run}" if name else run
        for name, written in reports.items()
        for run in written.diverged
    ]
    if diverged:
        raise DivergedError(
            f"Diverged: {', '.join(diverged)}; lower their learning rates or "
            "hyper-parameters, and use another work directory for them. All other runs are kept."
        )


def _named(scenario: str, add_bar: comparison.AddProgress) -> comparison.AddProgress:
    """Returns `add_bar` with the scenario before the names of runs."""
    if not scenario:
        return add_bar
    return lambda name, score: add_bar(f"{scenario}: {name}", score)


def _show(written: report.Report, directory: pathlib.Path) -> None:
    app.say(written.table)
    for note in written.notes:
        app.say(note)
    app.say(f"{', '.join(written.files[:-1])} and {written.files[-1]} are in {directory}")
