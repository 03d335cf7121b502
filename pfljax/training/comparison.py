"""The runs of a comparison: several methods with several seeds on one federated data set.

Each run has a separate work directory, `DIRECTORY/METHOD/seed_SEED`. Finished runs are not repeated
and interrupted ones are resumed. `pfljax.report.comparison` writes the table and the plots.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from pfljax.data import FederatedDataset
from pfljax.errors import DivergedError
from pfljax.training.run import compiling, loop, workdir
from pfljax.training.study import config_checks, config_runs, experiment, placement, vectorized

Run = tuple[str, int]  # a method and a seed

# Called before each run, or vectorized runs, with their name and score: returns its progress.
AddProgress = Callable[[str, str], loop.Progress]


def no_progress(name: str, score: str) -> loop.Progress:
    """Returns a progress callback that shows nothing."""
    return lambda rounds, scores: None


def prepare(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    *,
    say: Callable[[str], None] = lambda message: None,
) -> Comparison:
    """Loads the data and builds every method of a comparison, so that errors appear at once.

    The caller holds the lock of the directory (`locks.hold`).

    Args:
      config: The config of the comparison.
      directory: The work directory of the comparison.
      say: Called with messages for the user.

    Returns:
      The comparison, with the data sets that its unfinished runs need.

    Raises:
      UserError: The config is invalid, or a directory contains another run.
    """
    config_checks.check(config)
    comparison = Comparison(config, directory)
    if not comparison.on_host():
        for each in comparison.to_do:
            loop.check_plan(comparison.build(each), comparison.directory_of(each))
    if comparison.longer:
        names = ", ".join(f"{name} with seed {seed}" for name, seed in comparison.longer)
        say(f"Extending to {config.rounds} rounds, with new results: {names}")
    return comparison


def train(
    comparison: Comparison,
    *,
    vmap_seeds: bool = False,
    add_progress: AddProgress = no_progress,
) -> None:
    """Trains all runs of a comparison that are not finished.

    Runs that diverge are marked in their results, and the others continue.

    Args:
      comparison: The comparison.
      vmap_seeds: Whether to train all seeds of a method in one program.
      add_progress: Called before each run, or vectorized runs, with its name and the name of its
        score; returns the callback of its progress.

    Raises:
      Stopped: A signal stopped a run; a checkpoint is saved.
    """
    methods = list(dict.fromkeys(name for name, _ in comparison.to_do))
    while methods:
        if vmap_seeds:
            now = methods[:1]
            _run_seeds_vectorized(comparison, now, add_progress)
        else:
            now = _compile_first(comparison, methods)
            _run_one_by_one(comparison, now, add_progress)
        comparison.forget(now)
        methods = methods[len(now) :]
        if methods and (not vmap_seeds or compiling.programs_fill_memory()):
            compiling.free_programs()


def _compile_first(comparison: Comparison, methods: Sequence[str]) -> Sequence[str]:
    """Compiles the programs of the first methods for which there is memory; returns these."""
    if comparison.on_host():
        return methods[:1]  # each run compiles programs of its own
    built = comparison.built(methods)
    count = compiling.compile_all(built)
    if count == len(built):
        return methods
    return methods[: methods.index(built[count - 1].config.algorithm) + 1]


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
        self._configs: dict[Run, ml_collections.ConfigDict] = {}
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
        if run not in self._configs:
            self._configs[run] = config_runs.of_run(self.config, *run)
        return self._configs[run]

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

    def _same_form(self, run: Run) -> list[int]:
        """Returns the seeds whose runs share programs with this run, including its own."""
        name, seed = run
        own, method = self.datasets[seed], self.to_do[0][0]

        def choice(seed):
            return self.config_of((method, seed)), self.datasets[seed]

        def files(seed):
            return config_runs.files_of(self.config_of((name, seed)))

        return [
            one
            for one, other in self.datasets.items()
            if experiment.same_form(own, other)
            and experiment.same_choice(choice(seed), choice(one))
            and files(seed) == files(one)
        ]

    def build(self, run: Run) -> experiment.Experiment:
        """Returns the experiment of a run; runs of a method share programs where possible."""
        name, seed = run
        same, chunk = self._same_form(run), workdir.clients_per_chunk(self.directory_of(run))
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

    def built(self, methods: Sequence[str]) -> list[experiment.Experiment]:
        """Returns the experiments of methods built so far, one for runs that share programs."""
        return [built for (name, *_), built in self._built.items() if name in methods]

    def forget(self, methods: Sequence[str]) -> None:
        """Drops the experiments of methods, of which no run is left."""
        self._built = {key: built for key, built in self._built.items() if key[0] not in methods}

    def first_dataset(self) -> FederatedDataset:
        """Returns the data set of the first seed, which is loaded if all runs are finished."""
        if self.datasets:
            return next(iter(self.datasets.values()))
        run = (self.config.algorithms[0], self.config.seeds[0])
        return experiment.build_dataset(self.config_of(run))

    def on_host(self) -> bool:
        """Whether populations are stored on the host, where runs share nothing."""
        return self.config.engine.residence == "host"


def _run_one_by_one(
    comparison: Comparison, methods: Sequence[str], add_progress: AddProgress
) -> None:
    for run in comparison.to_do:
        if run[0] not in methods:
            continue
        built = _build(comparison, run)
        progress = add_progress(f"{run[0]}, seed {run[1]}", built.task.score)
        try:
            loop.run(built, comparison.directory_of(run), resume=True, progress=progress)
        except DivergedError:
            continue  # The result contains the reason, and the table marks the run.


def _build(comparison: Comparison, run: Run) -> experiment.Experiment:
    if comparison.on_host():
        chunk = workdir.clients_per_chunk(comparison.directory_of(run))
        return experiment.build(comparison.config_of(run), comparison.datasets[run[1]], None, chunk)
    return comparison.build(run)


def _run_seeds_vectorized(
    comparison: Comparison, methods: Sequence[str], add_progress: AddProgress
) -> None:
    """Trains the seeds of each method in one program, grouped by the round to resume from."""
    for name in methods:
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
            compiling.compile_all([built])
            try:
                loop.run_vectorized(
                    built,
                    [comparison.config_of(run) for run in own],
                    [comparison.directory_of(run) for run in own],
                    datasets,
                    resume=True,
                    progress=add_progress(f"{name}, {len(group)} seeds", single.task.score),
                )
            except DivergedError:
                continue
