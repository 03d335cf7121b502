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

import copy
import pathlib
from typing import Any

import jax
import ml_collections
from absl import flags

from pfljax.cli import app
from pfljax.data import FederatedDataset, statistics
from pfljax.errors import DivergedError
from pfljax.report import finished, partitions, plots, tables
from pfljax.training.run import locks, loop, workdir
from pfljax.training.study import config as config_lib
from pfljax.training.study import experiment, placement, vectorized

Run = tuple[str, int]  # a method and a seed


class Comparison:
    """The runs of a comparison, and the data sets and programs that they share.

    Attributes:
      config: The config of the comparison.
      directory: The work directory of the comparison.
      to_do: The runs that are not finished.
      longer: The runs that are finished with fewer rounds and will be extended.
      datasets: The data set of each seed; empty if all runs are finished.
    """

    def __init__(self, config: ml_collections.ConfigDict, directory: pathlib.Path):
        self.config, self.directory = config, directory
        runs = [(name, seed) for name in config.algorithms for seed in config.seeds]
        self.to_do = [
            run
            for run in runs
            if not workdir.is_finished(self.directory_of(run), self.config_of(run))
        ]
        for run in self.to_do:
            workdir.check(self.directory_of(run), self.config_of(run), resume=True)
        self.longer = [
            run for run in self.to_do if (self.directory_of(run) / "result.json").exists()
        ]
        self.datasets = self._load()
        self._examples: dict[int, Any] = {}
        self._built: dict[Any, experiment.Experiment] = {}

    def directory_of(self, run: Run) -> pathlib.Path:
        """Returns the work directory of a run."""
        return self.directory / run[0] / f"seed_{run[1]}"

    def config_of(self, run: Run) -> ml_collections.ConfigDict:
        """Returns the config of a run."""
        name, seed = run
        own = copy.deepcopy(self.config)
        with own.unlocked():
            own.algorithm, own.seed = name, seed
            if own.seeds_vary == "everything":
                own.data.seed += seed
        return own

    def _load(self) -> dict[int, FederatedDataset]:
        """Loads the data set of each seed; the same one for all if seeds vary training only.

        Data sets of finished seeds are loaded too: the largest client of all seeds determines the
        shapes of the compiled programs, and a resumed run must round as before.
        """
        found: dict[int, FederatedDataset] = {}
        for seed in self.config.seeds if self.to_do else ():
            if found and self.config.seeds_vary == "training":
                found[seed] = next(iter(found.values()))
            else:
                found[seed] = experiment.build_dataset(self.config_of((self.to_do[0][0], seed)))
        return found

    def _same_form(self, seed: int) -> list[int]:
        """Returns the seeds whose runs share programs with this seed's, including this seed."""
        own, method = self.datasets[seed], self.to_do[0][0]

        def choice(seed):
            return self.config_of((method, seed)), self.datasets[seed]

        return [
            one
            for one, other in self.datasets.items()
            if experiment.same_form(own, other)
            and experiment.same_choice(choice(seed), choice(one))
        ]

    def build(self, run: Run) -> experiment.Experiment:
        """Returns the experiment of a run; runs of a method share programs where possible."""
        name, seed = run
        same, chunk = self._same_form(seed), workdir.clients_per_chunk(self.directory_of(run))
        key = (name, same[0], chunk)
        if key not in self._built:
            bounds = experiment.bounds_of([self.datasets[one] for one in same])
            self._built[key] = experiment.build(
                self.config_of((name, same[0])),
                self.datasets[same[0]],
                self._examples.get(id(self.datasets[same[0]])),
                chunk,
                bounds,
            )
            # Without class counts, which only some methods use.
            self._examples[id(self.datasets[same[0]])] = placement.with_class_counts(
                self._built[key].examples, self.datasets[same[0]], (), False
            )
        built, dataset = self._built[key], self.datasets[seed]
        if id(dataset) not in self._examples:
            bounds = experiment.bounds_of([self.datasets[one] for one in same])
            self._examples[id(dataset)] = placement.to_devices(dataset, built.devices, bounds)
        examples = placement.with_class_counts(
            self._examples[id(dataset)], dataset, built.devices, built.uses_class_counts
        )
        if dataset.server is not None:  # The seeds that share programs have their own.
            built = built.with_server_data(dataset)
        return built._replace(config=self.config_of(run), dataset=dataset, examples=examples)

    def on_host(self) -> bool:
        """Whether populations are stored on the host, where runs share nothing."""
        return self.config.engine.residence == "host"


def define_flags() -> None:
    """Defines the flags of this command."""
    app.define_study()
    flags.DEFINE_bool(
        "vmap_seeds", False, "Train all seeds of a method in one program, compiled once."
    )


def main() -> None:
    """Runs the command."""
    config, directory = app.study()
    config_lib.check(config)
    with locks.hold(directory):
        _compare(config, directory)


def _compare(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    comparison = Comparison(config, directory)
    # Build every method before the first run, so that errors appear immediately.
    if not comparison.on_host():
        for run in comparison.to_do:
            loop.check_plan(comparison.build(run), comparison.directory_of(run))
    if comparison.longer:
        names = ", ".join(f"{name} with seed {seed}" for name, seed in comparison.longer)
        app.say(f"Extending to {config.rounds} rounds, with new results: {names}")
    diverged = []
    with app.progress(config.rounds) as add_bar:
        if flags.FLAGS.vmap_seeds:
            _run_seeds_vectorized(comparison, add_bar)
        else:
            _run_one_by_one(comparison, add_bar)
    if jax.process_index() == 0:
        diverged = _report(comparison)
    if diverged:
        raise DivergedError(
            f"Diverged: {', '.join(diverged)}; lower their learning rates or hyper-parameters, and "
            "use another work directory for them. All other runs are kept."
        )


def _run_one_by_one(comparison: Comparison, add_bar) -> None:
    for run in comparison.to_do:
        built = _build(comparison, run)
        bar = add_bar(f"{run[0]}, seed {run[1]}", built.task.score)
        try:
            loop.run(built, comparison.directory_of(run), resume=True, progress=bar)
        except DivergedError:
            continue  # The result contains the reason, and the table marks the run.


def _build(comparison: Comparison, run: Run) -> experiment.Experiment:
    if comparison.on_host():
        chunk = workdir.clients_per_chunk(comparison.directory_of(run))
        return experiment.build(comparison.config_of(run), comparison.datasets[run[1]], None, chunk)
    return comparison.build(run)


def _run_seeds_vectorized(comparison: Comparison, add_bar) -> None:
    """Trains the seeds of each method in one program, grouped by the round to resume from."""
    for name in dict.fromkeys(name for name, _ in comparison.to_do):
        runs = [run for run in comparison.to_do if run[0] == name]
        for group in vectorized.group_by_round([comparison.directory_of(run) for run in runs]):
            own = [runs[number] for number in group]
            # Built with the examples of the first seed, the only ones in a group of one.
            single = _build(comparison, own[0])
            datasets = [comparison.datasets[seed] for _, seed in own]
            share = all(dataset is datasets[0] for dataset in datasets)
            built = vectorized.build(
                [comparison.config_of(run) for run in own],
                single,
                None if share else datasets,
                workdir.clients_per_chunk(comparison.directory_of(own[0])),
            )
            try:
                loop.run_vectorized(
                    built,
                    [comparison.config_of(run) for run in own],
                    [comparison.directory_of(run) for run in own],
                    datasets,
                    resume=True,
                    progress=add_bar(f"{name}, {len(group)} seeds", single.task.score),
                )
            except DivergedError:
                continue


def _draw_partition(comparison: Comparison, title: str) -> list[str]:
    """Draws the plots of the partition unless they exist; returns the names of the files."""
    directory, dataset = comparison.directory, next(iter(comparison.datasets.values()), None)
    if dataset is None and not (directory / partitions.SIZES).exists():
        run = (comparison.config.algorithms[0], comparison.config.seeds[0])
        dataset = experiment.build_dataset(comparison.config_of(run))
    if dataset is not None:
        found = statistics.measure(dataset)
        return partitions.draw(directory, found, title, dataset.num_unseen)
    return [name for name in partitions.PICTURES if (directory / name).exists()]


def _report(comparison: Comparison) -> list[str]:
    """Writes and prints the comparison; returns the names of the runs that diverged."""
    config, directory = comparison.config, comparison.directory
    runs, omitted = finished.collect(directory, config)
    first = next(iter(runs.values()))[0].result
    clients = (
        f"{first['dataset']}, {first['num_clients']} clients, "
        f"{partitions.name_partition(config.data)}"
    )
    seeds = len(config.seeds)
    title = (
        f"{clients}, {first['model']}, {config.rounds} rounds, {seeds} seed{'s' * (seeds > 1)}"
        + (" on one partition" if seeds > 1 and config.seeds_vary == "training" else "")
    )
    notes = [*tables.notes(runs), *omitted]
    one_of_several = seeds > 1 and config.seeds_vary == "everything"
    drawn = f"{clients}, seed {config.seeds[0]}" if one_of_several else clients
    pictures = _draw_partition(comparison, drawn)
    tables.write_markdown(directory / "comparison.md", runs, title, pictures, notes)
    tables.write_csv(directory / "comparison.csv", runs)
    files = ["comparison.md", "comparison.csv", *pictures]
    if any(not run.diverged for seeds in runs.values() for run in seeds):
        plots.plot_curves(directory / "curves.png", runs, title)
        plots.plot_clients(directory / "clients.png", runs, title)
        files[2:2] = ["curves.png", "clients.png"]
    app.say(tables.table(runs, title))
    for note in notes:
        app.say(note)
    app.say(f"{', '.join(files[:-1])} and {files[-1]} are in {directory}")
    return [
        f"{name} with seed {run.result['seed']}"
        for name, seeds in runs.items()
        for run in seeds
        if run.diverged and name in config.algorithms
    ]
