"""Several values of a method's hyper-parameters, trained in one program and compared by validation.

Each run has a separate work directory, `DIRECTORY/METHOD/KEY=VALUE.../seed_SEED`. Finished runs are
not repeated and interrupted ones are resumed.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from pfljax import metrics
from pfljax.data import FederatedDataset
from pfljax.errors import DivergedError, UserError
from pfljax.training.comparison import AddProgress, no_progress
from pfljax.training.run import loop, workdir, writers
from pfljax.training.study import config_runs, config_values, experiment, vectorized


def parse(text: str, config) -> tuple[str, list]:
    """Returns a key of the config and its values, in the type of the config's own value.

    Raises:
      UserError: The key does not exist, or a value is invalid.
    """
    key, equals, values = text.partition("=")
    if key == "learning_rate":
        key = f"learning_rates.{config.algorithm}"
    if not equals or not values:
        raise UserError(f"--values={text} has no values; write KEY=VALUE,VALUE.")
    node = parent = config
    for name in key.split("."):
        known = list(node) if hasattr(node, "keys") else []
        if name not in known:
            raise UserError(
                f"--values has the unknown config key {key!r}.{config_values.suggest(name, known)}"
            )
        parent, node = node, node[name]
    if key == "client_optimizer.learning_rate" and config.learning_rates[config.algorithm]:
        raise UserError(
            f"config.learning_rates sets a learning rate for {config.algorithm}; sweep "
            f"learning_rates.{config.algorithm} instead."
        )
    # The type of a key without a value is known too.
    kind = parent.get_type(key.split(".")[-1]) if node is None else type(node)
    if kind not in (bool, int, float):
        raise UserError(f"config.{key} is not a number; only numbers can be swept.")
    words = {"true": True, "false": False}
    try:
        return key, [words[v.lower()] if kind is bool else kind(v) for v in values.split(",")]
    except (ValueError, KeyError) as error:
        example = 0.05 if node is None else node
        raise UserError(
            f"--values={text}: config.{key} takes values such as {example!r}."
        ) from error


def changed(config, settings: dict, seed: int, *, vary_data: bool = False):
    """Returns a copy of the config with these values and this seed."""
    copied = config_runs.with_own_keys(config, config.algorithm)
    copied.update_from_flattened_dict({**settings, "seed": seed})
    if vary_data:
        copied.data.seed += seed
    return copied


def name_of(settings: dict) -> str:
    """Returns the name of a directory, such as `lam=0.1,learning_rate=0.05`."""
    return ",".join(f"{key.split('.')[-1]}={value!r}" for key, value in settings.items())


class Scored(NamedTuple):
    """The scores of one setting, averaged over the seeds.

    Attributes:
      settings: The values of the setting, `{key: value}`.
      validation: The validation score, in the round that `config.selection` chooses; NaN if a run
        diverged.
      test: The test score in the same round; NaN if a run diverged.
    """

    settings: dict[str, Any]
    validation: float
    test: float


class Sweep(NamedTuple):
    """The result of a sweep.

    Attributes:
      score: The name of the score.
      settings: The settings, the best one first.
      best: The best setting; None if all diverged.
      each_client: The test score if each client has the setting with its own best validation score,
        both after the last round, averaged over clients and seeds; NaN if a run diverged, or if a
        client has no validation score.
      at_the_edge: The keys whose best value is the smallest or the largest value tried.
    """

    score: str
    settings: list[Scored]
    best: Scored | None
    each_client: float
    at_the_edge: list[str]


def run(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    grid: Mapping[str, Sequence[Any]],
    *,
    vary_data: bool = False,
    add_progress: AddProgress = no_progress,
) -> Sweep:
    """Trains all combinations of values of a config's method, and writes `sweep_METHOD.csv`.

    Runs that diverge are marked in their results. The caller holds the lock of the directory
    (`locks.hold`).

    Args:
      config: The config of the sweep, with the seeds of each setting.
      directory: The work directory of the sweep.
      grid: The values to try of each key of the config, such as `{'hparams.ditto.lam': [0.1, 1]}`.
      vary_data: Whether each seed has a partition and splits of its own, as in a comparison with
        `config.seeds_vary='everything'`; otherwise all share those of `config.data.seed`.
      add_progress: Called before vectorized runs with their name and the name of their score;
        returns the callback of their progress.

    Raises:
      UserError: A key or a value is invalid, or a directory contains another run.
      Stopped: A signal stopped the runs; checkpoints are saved.
    """
    settings = [
        dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*grid.values())
    ]
    runs = [(setting, seed) for setting in settings for seed in config.seeds]
    configs = [changed(config, *run, vary_data=vary_data) for run in runs]
    directories = [
        directory / config.algorithm / name_of(setting) / f"seed_{seed}" for setting, seed in runs
    ]
    todo = [
        index
        for index, run_directory in enumerate(directories)
        if not workdir.is_finished(run_directory, configs[index])
    ]
    for index in todo:
        workdir.check(directories[index], configs[index], resume=True)
    built = None
    loaded: dict[int, FederatedDataset] = {}
    if vary_data and todo:
        for one in configs:
            if one.data.seed not in loaded:
                loaded[one.data.seed] = experiment.build_dataset(one)
    for group in vectorized.group_by_round([directories[index] for index in todo]):
        own = [todo[number] for number in group]
        chunk = workdir.clients_per_chunk(directories[own[0]])
        own_configs = [configs[index] for index in own]
        datasets = [loaded[one.data.seed] for one in own_configs] if vary_data else None
        built = vectorized.build(own_configs, None if vary_data else built, datasets, chunk)
        with contextlib.suppress(DivergedError):  # The results mark the diverged runs.
            loop.run_vectorized(
                built,
                own_configs,
                [directories[index] for index in own],
                datasets,
                resume=True,
                progress=add_progress(f"{config.algorithm}, {len(own)} runs", built.task.score),
            )
    sweep = _ranked(config, settings, list(zip(runs, directories, strict=True)))
    if jax.process_index() == 0:
        _write(directory / f"sweep_{config.algorithm}.csv", sweep)
    return sweep


def scores(
    run_directory: pathlib.Path, *, mean: str = "weighted", which_round: str = "best"
) -> tuple[float, float]:
    """Returns a run's validation score, and its test score in the same round.

    Args:
      run_directory: The work directory of the run.
      mean: How clients are averaged, one of `config.MEANS`.
      which_round: The round, one of `config.ROUNDS`.

    Returns:
      Both scores; NaN if the run diverged.
    """
    result = writers.read_json(run_directory / "result.json")
    if "diverged" in result:
        return math.nan, math.nan
    score, sign = score_of(result)
    rows = writers.read_rows(run_directory / "metrics.jsonl")
    chosen = len(rows) - 1
    if which_round == "best":
        more = sign > 0
        chosen = metrics.best_round(rows, "personal", score, more_is_better=more, mean=mean)
    found = {} if chosen is None else rows[chosen]
    validation, test = (
        found.get(f"personal/{split}_{score}_{mean}") for split in ("validation", "test")
    )
    if validation is None or test is None:
        raise UserError(
            f"A sweep needs validation examples and test examples for which {score} is defined; "
            "raise config.data.validation_fraction, or choose another config.score."
        )
    return validation, test


def score_of(result: dict[str, Any]) -> tuple[str, int]:
    """Returns the metric of a run, and 1 if larger values are better, otherwise -1."""
    return result.get("score_name", "accuracy"), 1 if result.get("more_is_better", True) else -1


def _ranked(config: ml_collections.ConfigDict, settings: list[dict[str, Any]], runs) -> Sweep:
    lines = []
    for setting in settings:
        own = [
            scores(run_directory, **config.selection)
            for (used, _), run_directory in runs
            if used == setting
        ]
        lines.append(Scored(setting, *(statistics.mean(each) for each in zip(*own, strict=True))))
    score, sign = score_of(writers.read_json(runs[0][1] / "result.json"))
    lines.sort(
        key=lambda line: -math.inf if math.isnan(line.validation) else sign * line.validation,
        reverse=True,
    )
    if math.isnan(lines[0].validation):
        return Sweep(score, lines, None, math.nan, [])
    best = lines[0].settings
    tried = {key: {setting[key] for setting in settings} for key in best}
    edge = [
        key
        for key, value in best.items()
        if len(tried[key]) > 2 and value in (min(tried[key]), max(tried[key]))
    ]
    each_client = statistics.mean(
        _chosen_by_each_client(
            [run_directory for (_, used), run_directory in runs if used == seed],
            score,
            sign,
            config.selection.mean,
        )
        for seed in config.seeds
    )
    return Sweep(score, lines, lines[0], each_client, edge)


def _chosen_by_each_client(
    directories: Sequence[pathlib.Path], score: str, sign: int, mean: str
) -> float:
    """Returns the mean test score of clients that each choose among runs by validation.

    Args:
      directories: The runs of all settings with one seed.
      score: The name of the score.
      sign: 1 if larger values are better, otherwise -1.
      mean: How clients are averaged, one of `config.MEANS`.
    """
    tables = []
    for directory in directories:
        if "diverged" in writers.read_json(directory / "result.json"):
            return math.nan
        with np.load(directory / "clients.npz") as arrays:
            tables.append(dict(arrays))
    tested = (tables[0]["test_size"] > 0) & ~tables[0]["unseen"]
    validation, test = (
        np.stack([table[f"personal_{split}_{score}"] for table in tables])[:, tested]
        for split in ("validation", "test")
    )
    if np.any(np.isnan(validation)):
        return math.nan
    chosen = np.argmax(sign * validation, axis=0)
    weights = tables[0]["test_size"][tested] if mean == "weighted" else None
    return float(np.average(test[chosen, np.arange(test.shape[1])], weights=weights))


def _write(path: pathlib.Path, sweep: Sweep) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        keys = sweep.settings[0].settings
        writer.writerow([*keys, f"validation_{sweep.score}", f"test_{sweep.score}"])
        writer.writerows(
            [*setting.values(), *("diverged" if math.isnan(mean) else mean for mean in means)]
            for setting, *means in sweep.settings
        )
