r"""Runs several methods with several seeds on one federated data set, and compares them.

    python experiments/compare.py --config=configs/quickstart.py --workdir=WORKDIR \
        --config.algorithms="('local','fedavg','ditto')" --config.seeds="(0,1,2)"

Each run has a work directory of its own, `WORKDIR/METHOD/seed_SEED`. Finished runs are not
repeated and interrupted ones go on, so that the same command continues after a preemption, and
adding a method or a seed runs only what is new. At the end: the table, `comparison.md`,
`comparison.csv`, `curves.png`, `clients.png`, and pictures of the partition. The table shows all
comparable runs that lie in WORKDIR. With `--vmap_seeds` the seeds of a method share one program.

A seed decides everything random, the partition and the splits included;
`--config.seeds_vary=training` keeps those of `config.data.seed`. A run that diverges is marked in
the table, the others go on, and the exit status is 2 at the end.
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
    """The runs of a comparison, and what they share.

    Attributes:
      config: of the comparison.
      directory: its work directory.
      to_do: the runs that are not finished.
      longer: those of them that are finished with fewer rounds, and go on.
      datasets: of each seed; empty where nothing is to run.
    """

    def __init__(self, config: ml_collections.ConfigDict, directory: pathlib.Path):
        self.config, self.directory = config, directory
        runs = [(name, seed) for name in config.algorithms for seed in config.seeds]
        self.to_do = [run for run in runs if not workdir.is_finished(self.place(run), self.of(run))]
        for run in self.to_do:
            workdir.check(self.place(run), self.of(run), resume=True)
        self.longer = [run for run in self.to_do if (self.place(run) / "result.json").exists()]
        self.datasets = self._load()
        self._examples: dict[int, Any] = {}
        self._built: dict[Any, experiment.Experiment] = {}

    def place(self, run: Run) -> pathlib.Path:
        """Returns the work directory of a run."""
        return self.directory / run[0] / f"seed_{run[1]}"

    def of(self, run: Run) -> ml_collections.ConfigDict:
        """Returns the config of a run."""
        name, seed = run
        own = copy.deepcopy(self.config)
        with own.unlocked():
            own.algorithm, own.seed = name, seed
            if own.seeds_vary == "everything":
                own.data.seed += seed
        return own

    def _load(self) -> dict[int, FederatedDataset]:
        """Loads the data set of each seed; one for all where seeds vary training alone.

        Those of finished seeds too, because the largest clients of all decide how programs are
        compiled, and a run that goes on is to round as it did.
        """
        found: dict[int, FederatedDataset] = {}
        for seed in self.config.seeds if self.to_do else ():
            if found and self.config.seeds_vary == "training":
                found[seed] = next(iter(found.values()))
            else:
                found[seed] = experiment.build_dataset(self.of((self.to_do[0][0], seed)))
        return found

    def _alike(self, seed: int) -> list[int]:
        """Returns the seeds whose runs share programs with this one's, this one included."""
        own, method = self.datasets[seed], self.to_do[0][0]

        def choice(seed):
            return self.of((method, seed)), self.datasets[seed]

        return [
            one
            for one, other in self.datasets.items()
            if experiment.same_form(own, other)
            and experiment.same_choice(choice(seed), choice(one))
        ]

    def build(self, run: Run) -> experiment.Experiment:
        """Returns the experiment of a run; those of a method share programs wherever they can."""
        name, seed = run
        alike, begun = self._alike(seed), workdir.clients_per_chunk(self.place(run))
        key = (name, alike[0], begun)
        if key not in self._built:
            bounds = experiment.bounds_of([self.datasets[one] for one in alike])
            self._built[key] = experiment.build(
                self.of((name, alike[0])),
                self.datasets[alike[0]],
                self._examples.get(id(self.datasets[alike[0]])),
                begun,
                bounds,
            )
            # Without class counts, which only some methods read.
            self._examples[id(self.datasets[alike[0]])] = placement.with_class_counts(
                self._built[key].examples, self.datasets[alike[0]], (), False
            )
        built, dataset = self._built[key], self.datasets[seed]
        if id(dataset) not in self._examples:
            bounds = experiment.bounds_of([self.datasets[one] for one in alike])
            self._examples[id(dataset)] = placement.to_devices(dataset, built.devices, bounds.train)
        examples = placement.with_class_counts(
            self._examples[id(dataset)], dataset, built.devices, built.uses_class_counts
        )
        return built._replace(config=self.of(run), dataset=dataset, examples=examples)

    def on_host(self) -> bool:
        """Whether populations lie on the host, where nothing of one run serves another."""
        return self.config.engine.residence == "host"


def define_flags() -> None:
    """Defines the flags of this command."""
    app.define_study()
    flags.DEFINE_bool(
        "vmap_seeds", False, "Train all seeds of a method in one program, which compiles once."
    )


def main() -> None:
    """Runs the command."""
    config, directory = app.study()
    config_lib.check(config)
    with locks.hold(directory):
        _compare(config, directory)


def _compare(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    comparison = Comparison(config, directory)
    # Every method is built before the first one runs, so that no mistake shows up after an hour.
    if not comparison.on_host():
        for run in comparison.to_do:
            loop.check_plan(comparison.build(run), comparison.place(run))
    if comparison.longer:
        names = ", ".join(f"{name} with seed {seed}" for name, seed in comparison.longer)
        app.say(f"Going on to {config.rounds} rounds, and replacing their results: {names}")
    diverged = []
    with app.progress(config.rounds) as add_bar:
        if flags.FLAGS.vmap_seeds:
            _run_seeds_together(comparison, add_bar)
        else:
            _run_one_by_one(comparison, add_bar)
    if jax.process_index() == 0:
        diverged = _report(comparison)
    if diverged:
        raise DivergedError(
            f"Diverged: {', '.join(diverged)}; lower their learning rates or hyper-parameters, and "
            "take another work directory for them. All other runs are kept."
        )


def _run_one_by_one(comparison: Comparison, add_bar) -> None:
    for run in comparison.to_do:
        built = _build(comparison, run)
        bar = add_bar(f"{run[0]}, seed {run[1]}", built.task.score)
        try:
            loop.run(built, comparison.place(run), resume=True, progress=bar)
        except DivergedError:
            continue  # The run's result says why, and the table marks it.


def _build(comparison: Comparison, run: Run) -> experiment.Experiment:
    if comparison.on_host():
        begun = workdir.clients_per_chunk(comparison.place(run))
        return experiment.build(comparison.of(run), comparison.datasets[run[1]], None, begun)
    return comparison.build(run)


def _run_seeds_together(comparison: Comparison, add_bar) -> None:
    """Trains the seeds of each method in one program; those that stopped alike go on together."""
    for name in dict.fromkeys(name for name, _ in comparison.to_do):
        runs = [run for run in comparison.to_do if run[0] == name]
        for group in vectorized.group_by_round([comparison.place(run) for run in runs]):
            own = [runs[number] for number in group]
            # With the examples of the group's first seed, which a group of one has no others than.
            alone = _build(comparison, own[0])
            datasets = [comparison.datasets[seed] for _, seed in own]
            share = all(dataset is datasets[0] for dataset in datasets)
            built = vectorized.build(
                [comparison.of(run) for run in own],
                alone,
                None if share else datasets,
                workdir.clients_per_chunk(comparison.place(own[0])),
            )
            try:
                loop.run_vectorized(
                    built,
                    [comparison.of(run) for run in own],
                    [comparison.place(run) for run in own],
                    datasets,
                    resume=True,
                    progress=add_bar(f"{name}, {len(group)} seeds", alone.task.score),
                )
            except DivergedError:
                continue


def _draw_partition(comparison: Comparison, title: str) -> list[str]:
    """Draws what the clients have, unless that has been done; returns the pictures' names."""
    directory, dataset = comparison.directory, next(iter(comparison.datasets.values()), None)
    if dataset is None and not (directory / partitions.SIZES).exists():
        run = (comparison.config.algorithms[0], comparison.config.seeds[0])
        dataset = experiment.build_dataset(comparison.of(run))
    if dataset is not None:
        found = statistics.measure(dataset)
        return partitions.draw(directory, found, title, dataset.num_unseen)
    return [name for name in partitions.PICTURES if (directory / name).exists()]


def _report(comparison: Comparison) -> list[str]:
    """Writes and prints the comparison; returns the runs that diverged."""
    config, directory = comparison.config, comparison.directory
    runs, left_out = finished.collect(directory, config)
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
    notes = [*tables.notes(runs), *left_out]
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
