"""Runs several methods with several seeds on one federated data set, and compares them.

    python experiments/compare.py --config=configs/quickstart.py --workdir=WORKDIR \
        --config.algorithms="('local','fedavg','ditto')" --config.seeds="(0,1,2)"

Each run has a work directory of its own, `WORKDIR/METHOD/seed_SEED`. Finished runs are not
repeated and interrupted ones go on, so the same command continues after a preemption, and a
method added to it costs only itself. At the end: the table, `comparison.md`, `comparison.csv`,
`curves.png`, `clients.png`, and pictures of the partition. With `--vmap_seeds` the seeds of a
method share one program.
"""

from __future__ import annotations

import copy
import pathlib

import binary
import jax
from absl import flags

from pfljax.data import statistics
from pfljax.errors import UserError
from pfljax.training import config as config_lib
from pfljax.training import (
    experiment,
    loop,
    partition_report,
    report,
    together,
    workdir,
)

binary.define_study()
_VMAP_SEEDS = flags.DEFINE_bool(
    "vmap_seeds", False, "Train all seeds of a method in one program, which compiles once."
)


def _variant(config, algorithm: str, seed: int):
    variant = copy.deepcopy(config)
    with variant.unlocked():
        variant.algorithm, variant.seed = algorithm, seed
    return variant


def main():
    config, directory = binary.study()
    config_lib.check(config)
    places = {
        (name, seed): directory / name / f"seed_{seed}"
        for name in config.algorithms
        for seed in config.seeds
    }
    open_runs = [
        run
        for run, place in places.items()
        if not workdir.is_finished(place, _variant(config, *run))
    ]
    for run in open_runs:
        workdir.check(places[run], _variant(config, *run), resume=True)
    # Every method is built before the first one runs, so that no mistake shows up after an hour.
    dataset = experiment.build_dataset(config) if open_runs else None
    built, examples = {}, None
    for name in dict.fromkeys(name for name, _ in open_runs):
        begun = [workdir.clients_per_chunk(places[run]) for run in open_runs if run[0] == name]
        chosen = next(filter(None, begun), None)
        variant = _variant(config, name, config.seeds[0])
        built[name] = experiment.build(variant, dataset, examples, chosen)
        examples = built[name].examples
    with binary.progress(config.rounds) as add_bar:
        if _VMAP_SEEDS.value:
            _run_seeds_together(config, open_runs, places, built, add_bar)
        else:
            for name, seed in open_runs:
                loop.run(
                    built[name]._replace(config=_variant(config, name, seed)),
                    places[name, seed],
                    resume=True,
                    progress=add_bar(f"{name}, seed {seed}", built[name].task.score),
                )
    if jax.process_index() == 0:
        _report(config, directory, places, dataset)


def _run_seeds_together(config, open_runs, places, built, add_bar) -> None:
    """Trains the seeds of each method in one program; those that stopped alike go on together."""
    diverged = []
    for name, alone in built.items():
        runs = [run for run in open_runs if run[0] == name]
        for group in together.in_step([places[run] for run in runs]):
            configs = [_variant(config, *runs[number]) for number in group]
            results = loop.run_together(
                together.build(configs, alone),
                configs,
                [places[runs[number]] for number in group],
                resume=True,
                progress=add_bar(f"{name}, {len(group)} seeds", alone.task.score),
            )
            diverged += [
                f"{name} with seed {one.seed}"
                for one, result in zip(configs, results, strict=True)
                if result is None
            ]
    if diverged:
        raise UserError(
            f"Diverged: {', '.join(diverged)}; lower config.client_optimizer.learning_rate or the "
            "method's hyper-parameters. All other runs are kept and need not be repeated."
        )


def _draw_partition(config, directory: pathlib.Path, dataset, title: str) -> list[str]:
    """Draws what the clients have, unless that has been done; returns the pictures' names."""
    if dataset is None and not (directory / partition_report.SIZES).exists():
        dataset = experiment.build_dataset(config)
    if dataset is not None:
        found = statistics.measure(dataset)
        return partition_report.draw(directory, found, title, dataset.num_unseen)
    return [name for name in partition_report.PICTURES if (directory / name).exists()]


def _report(config, directory: pathlib.Path, places, dataset) -> None:
    runs = {
        name: [report.read_run(places[name, seed]) for seed in config.seeds]
        for name in config.algorithms
    }
    first = runs[config.algorithms[0]][0].result
    clients = (
        f"{first['dataset']}, {first['num_clients']} clients, "
        f"{partition_report.name_partition(config.data)}"
    )
    title = (
        f"{clients}, {first['model']}, {config.rounds} rounds, "
        f"{len(config.seeds)} seed{'s' if len(config.seeds) > 1 else ''}"
    )
    pictures = _draw_partition(config, directory, dataset, clients)
    report.write_markdown(directory / "comparison.md", runs, title, pictures)
    report.write_csv(directory / "comparison.csv", runs)
    report.plot_curves(directory / "curves.png", runs, title)
    report.plot_clients(directory / "clients.png", runs, title)
    binary.say(report.table(runs, title))
    binary.say(report.explanation(runs))
    files = ["comparison.md", "comparison.csv", "curves.png", "clients.png", *pictures]
    binary.say(f"{', '.join(files[:-1])} and {files[-1]} are in {directory}")


if __name__ == "__main__":
    binary.run(main)
