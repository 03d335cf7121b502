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
`sweep_METHOD.csv`. All seeds use the partition of `config.data.seed`.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import itertools
import math
import pathlib
import statistics
from typing import Any, NamedTuple

import jax
import rich.table
from absl import flags

from pfljax import metrics
from pfljax.cli import app
from pfljax.errors import DivergedError, UserError
from pfljax.report import tables
from pfljax.training.run import locks, loop, workdir, writers
from pfljax.training.study import config as config_lib
from pfljax.training.study import vectorized


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
    node = config
    for name in key.split("."):
        known = list(node) if hasattr(node, "keys") else []
        if name not in known:
            raise UserError(
                f"--values has the unknown config key {key!r}.{config_lib.suggest(name, known)}"
            )
        node = node[name]
    if key == "client_optimizer.learning_rate" and config.learning_rates[config.algorithm]:
        raise UserError(
            f"config.learning_rates sets a learning rate for {config.algorithm}; sweep "
            f"learning_rates.{config.algorithm} instead."
        )
    kind = float if key.startswith("learning_rates.") else type(node)
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


def changed(config, settings: dict, seed: int):
    """Returns a copy of the config with these values and this seed."""
    copied = copy.deepcopy(config)
    copied.update_from_flattened_dict({**settings, "seed": seed})
    return copied


def name_of(settings: dict) -> str:
    """Returns the name of a directory, such as `lam=0.1,learning_rate=0.05`."""
    return ",".join(f"{key.split('.')[-1]}={value!r}" for key, value in settings.items())


class Best(NamedTuple):
    """The best setting of a method.

    Attributes:
      settings: The values of the setting, `{key: value}`.
      validation: The best validation score over the rounds, averaged over the seeds.
      test: The test score in the same round, averaged over the seeds.
      at_the_edge: The keys whose best value is the smallest or the largest value tried.
    """

    settings: dict[str, Any]
    validation: float
    test: float
    at_the_edge: list[str]


def define_flags() -> None:
    """Defines the flags of this command."""
    app.define_study()
    flags.DEFINE_multi_string(
        "values", [], "KEY=VALUE,VALUE,...; repeat the flag to try all combinations."
    )
    flags.DEFINE_bool(
        "every_method", False, "Sweep each of config.algorithms, with the same values."
    )


def main() -> None:
    """Runs the command."""
    config, directory = app.study()
    config_lib.check(config)
    if not flags.FLAGS.values:
        raise UserError("Pass the values to try, such as --values=hparams.ditto.lam=0.01,0.1,1.")
    found, diverged = {}, []
    for name in config.algorithms if flags.FLAGS.every_method else (config.algorithm,):
        own = changed(config, {"algorithm": name}, config.seed)
        try:
            with locks.hold(directory):
                found[name] = sweep(own, directory)
        except DivergedError:
            diverged.append(name)
    if jax.process_index() == 0:
        for best in found.values():
            words = " ".join(f"--config.{key}={value!r}" for key, value in best.settings.items())
            edge = ", ".join(best.at_the_edge)
            app.say(f"best: {words}{f' (at the edge of the values tried: {edge})' * bool(edge)}")
    if diverged:
        raise DivergedError(f"All values diverged for {', '.join(diverged)}; try lower ones.")


def sweep(config, directory: pathlib.Path) -> Best:
    """Runs all combinations of the values for a config's method, and reports them.

    Raises:
      DivergedError: All runs diverged.
    """
    grid = dict(parse(text, config) for text in flags.FLAGS.values)
    settings = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    runs = [(setting, seed) for setting in settings for seed in config.seeds]
    configs = [changed(config, *run) for run in runs]
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
    if todo:
        built = None
        with app.progress(config.rounds) as add_bar:
            for group in vectorized.group_by_round([directories[index] for index in todo]):
                own = [todo[number] for number in group]
                chunk = workdir.clients_per_chunk(directories[own[0]])
                own_configs = [configs[index] for index in own]
                built = vectorized.build(own_configs, built, None, chunk)
                with contextlib.suppress(DivergedError):  # The results mark the diverged runs.
                    loop.run_vectorized(
                        built,
                        own_configs,
                        [directories[index] for index in own],
                        resume=True,
                        progress=add_bar(f"{config.algorithm}, {len(own)} runs", built.task.score),
                    )
    return _report(config.algorithm, directory, settings, list(zip(runs, directories, strict=True)))


def scores(run_directory: pathlib.Path) -> tuple[float, float]:
    """Returns a run's best validation score and its test score; NaN if the run diverged."""
    result = writers.read_json(run_directory / "result.json")
    if "diverged" in result:
        return math.nan, math.nan
    score, sign = score_of(result)
    rows = writers.read_rows(run_directory / "metrics.jsonl")
    best = metrics.best_round(rows, "personal", score, more_is_better=sign > 0)
    found = {} if best is None else rows[best]
    validation, test = (
        found.get(f"personal/{split}_{score}_weighted") for split in ("validation", "test")
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


def _report(algorithm: str, directory: pathlib.Path, settings, runs) -> Best:
    lines = []
    for setting in settings:
        own = [scores(run_directory) for (used, _), run_directory in runs if used == setting]
        lines.append((setting, *(statistics.mean(column) for column in zip(*own, strict=True))))
    first = writers.read_json(runs[0][1] / "result.json")
    score, sign = score_of(first)
    lines.sort(key=lambda line: -math.inf if math.isnan(line[1]) else sign * line[1], reverse=True)
    with open(directory / f"sweep_{algorithm}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*settings[0], f"validation_{score}", f"test_{score}"])
        writer.writerows(
            [*setting.values(), *("diverged" if math.isnan(mean) else mean for mean in means)]
            for setting, *means in lines
        )
    table = rich.table.Table(title=f"{algorithm}, best validation {score} first")
    percent = tables.form_in(first, score).percent
    unit, factor, form = ("%", 100, ".2f") if percent else (score, 1, ".4g")
    for key in (*settings[0], f"validation ({unit})", f"test ({unit})"):
        table.add_column(key, justify="right")
    for setting, *means in lines:
        shown = ["diverged" if math.isnan(mean) else f"{factor * mean:{form}}" for mean in means]
        table.add_row(*(repr(value) for value in setting.values()), *shown)
    app.say(table)
    best, validation, test = lines[0]
    if math.isnan(validation):
        raise DivergedError(f"All runs of {algorithm} diverged.")
    tried = {key: {setting[key] for setting in settings} for key in best}
    edge = [
        key
        for key, value in best.items()
        if len(tried[key]) > 2 and value in (min(tried[key]), max(tried[key]))
    ]
    return Best(best, validation, test, edge)
