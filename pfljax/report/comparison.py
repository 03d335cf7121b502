"""The files of a comparison: the table and the plots of its runs."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import ml_collections
import rich.console

from pfljax.data import FederatedDataset, statistics
from pfljax.report import finished, partitions, plots, tables


class Report(NamedTuple):
    """What a comparison says, and the files that it is written to.

    Attributes:
      runs: The finished runs, `{method: [one run per seed]}`; those of `config.algorithms` and
        comparable ones of other methods in the directory.
      title: The title of the table.
      table: The table, to be printed.
      notes: Sentences below the table.
      files: The names of the files written to the directory.
      diverged: The runs of the comparison that diverged, as `METHOD with seed SEED`.
    """

    runs: dict[str, list[finished.Run]]
    title: str
    table: rich.console.Group
    notes: list[str]
    files: list[str]
    diverged: list[str]


def write(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    load: Callable[[], FederatedDataset],
    *,
    changed: bool = True,
) -> Report:
    """Writes `comparison.md`, `comparison.csv` and the plots of a comparison.

    Args:
      config: The config of the comparison; all its runs are finished.
      directory: The work directory of the comparison.
      load: Returns the data set of the first seed, for the plots of the partition.
      changed: Whether to draw the plots of the partition even if they exist.
    """
    runs, omitted = finished.collect(directory, config.algorithms, config.seeds)
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
    if changed or not (directory / partitions.SIZES).exists():
        dataset = load()
        found = statistics.measure(dataset)
        pictures = partitions.draw(directory, found, drawn, dataset.num_unseen)
    else:
        pictures = [name for name in partitions.PICTURES if (directory / name).exists()]
    tables.write_markdown(directory / "comparison.md", runs, title, pictures, notes)
    tables.write_csv(directory / "comparison.csv", runs)
    files = ["comparison.md", "comparison.csv", *pictures]
    if any(not run.diverged for seeds in runs.values() for run in seeds):
        plots.plot_curves(directory / "curves.png", runs, title)
        plots.plot_clients(directory / "clients.png", runs, title)
        files[2:2] = ["curves.png", "clients.png"]
    diverged = [
        f"{name} with seed {run.result['seed']}"
        for name, seeds in runs.items()
        for run in seeds
        if run.diverged and name in config.algorithms
    ]
    return Report(runs, title, tables.table(runs, title), notes, files, diverged)
