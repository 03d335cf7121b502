r"""Tries values of a method's hyper-parameters, all in one program, and names the best.

    python experiments/sweep.py --config=configs/quickstart.py --workdir=WORKDIR \
        --config.algorithm=ditto --values=hparams.ditto.lam=0.01,0.1,1 \
        --values=client_optimizer.learning_rate=0.02,0.05

`--every_method` does so for each of `config.algorithms` in turn, which gives all of them the same
budget; the key `learning_rate` then stands for `learning_rates.METHOD`:

    python experiments/sweep.py --config=configs/quickstart.py --workdir=WORKDIR --every_method \
        --values=learning_rate=0.01,0.03,0.1,0.3

Every combination runs with every seed of `config.seeds`; a run of its own is left in
`WORKDIR/METHOD/KEY=VALUE.../seed_SEED`. The best is chosen on validation examples: the score of
the personalized models in the round where it is highest, averaged over the seeds; test examples
only report. Finished runs are not repeated. At the end: the table, and `sweep_METHOD.csv`. All
seeds run on the partition of `config.data.seed`.
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

from pfljax.cli import app
from pfljax.errors import DivergedError, UserError
from pfljax.training.run import locks, loop, workdir, writers
from pfljax.training.study import config as config_lib
from pfljax.training.study import vectorized


def parse(text: str, config) -> tuple[str, list]:
    """Returns a key of the config and its values, in the type that the config has there.

    Raises:
      UserError: there is no such key, or a value cannot be meant.
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
                f"--values names the key {key!r}, which no config has."
                f"{config_lib.suggest(name, known)}"
            )
        node = node[name]
    if key == "client_optimizer.learning_rate" and config.learning_rates[config.algorithm]:
        raise UserError(
            f"{config.algorithm} has a learning rate of its own here; sweep "
            f"learning_rates.{config.algorithm}."
        )
    kind = float if key.startswith("learning_rates.") else type(node)
    if kind not in (bool, int, float):
        raise UserError(f"config.{key} is no number; only numbers can be swept.")
    words = {"true": True, "false": False}
    try:
        return key, [words[v.lower()] if kind is bool else kind(v) for v in values.split(",")]
    except (ValueError, KeyError) as error:
        example = 0.05 if node is None else node
        raise UserError(f"--values={text}: config.{key} takes values like {example!r}.") from error


def changed(config, settings: dict, seed: int):
    """Returns a copy of the config with these values and this seed."""
    copied = copy.deepcopy(config)
    copied.update_from_flattened_dict({**settings, "seed": seed})
    return copied


def name_of(settings: dict) -> str:
    """Returns a folder's name, such as `lam=0.1,learning_rate=0.05`."""
    return ",".join(f"{key.split('.')[-1]}={value!r}" for key, value in settings.items())


class Best(NamedTuple):
    """The best setting of a method.

    Attributes:
      settings: `{key: value}`.
      validation: its best validation score, the mean over seeds.
      test: the test score in the same round.
      at_the_edge: the keys whose best value is the least or the greatest that was tried.
    """

    settings: dict[str, Any]
    validation: float
    test: float
    at_the_edge: list[str]


def define_flags() -> None:
    """Defines the flags of this command."""
    app.define_study()
    flags.DEFINE_multi_string(
        "values", [], "KEY=VALUE,VALUE,...; given several times, all combinations are tried."
    )
    flags.DEFINE_bool(
        "every_method", False, "Sweep each of config.algorithms in turn, with the same values."
    )


def main() -> None:
    """Runs the command."""
    config, directory = app.study()
    config_lib.check(config)
    if not flags.FLAGS.values:
        raise UserError("Name what to try, such as --values=hparams.ditto.lam=0.01,0.1,1.")
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
            app.say(f"best: {words}{f' (at the edge of what was tried: {edge})' * bool(edge)}")
    if diverged:
        raise DivergedError(f"All values diverged for {', '.join(diverged)}; try lower ones.")


def sweep(config, directory: pathlib.Path) -> Best:
    """Runs all combinations of the values for a config's method, and reports them.

    Raises:
      DivergedError: all runs diverged.
    """
    grid = dict(parse(text, config) for text in flags.FLAGS.values)
    settings = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    runs = [(setting, seed) for setting in settings for seed in config.seeds]
    configs = [changed(config, *run) for run in runs]
    places = [
        directory / config.algorithm / name_of(setting) / f"seed_{seed}" for setting, seed in runs
    ]
    todo = [
        index
        for index, place in enumerate(places)
        if not workdir.is_finished(place, configs[index])
    ]
    for index in todo:
        workdir.check(places[index], configs[index], resume=True)
    if todo:
        built = None
        with app.progress(config.rounds) as add_bar:
            for group in vectorized.group_by_round([places[index] for index in todo]):
                own = [todo[number] for number in group]
                begun = workdir.clients_per_chunk(places[own[0]])
                alone = [configs[index] for index in own]
                built = vectorized.build(alone, built, None, begun)
                with contextlib.suppress(DivergedError):  # The results say which diverged.
                    loop.run_vectorized(
                        built,
                        alone,
                        [places[index] for index in own],
                        resume=True,
                        progress=add_bar(f"{config.algorithm}, {len(own)} runs", built.task.score),
                    )
    return _report(config.algorithm, directory, settings, list(zip(runs, places, strict=True)))


def scores(place: pathlib.Path) -> tuple[float, float]:
    """Returns a run's best validation score and the test score then; NaN if it diverged."""
    result = writers.read_json(place / "result.json")
    if "diverged" in result:
        return math.nan, math.nan
    score, sign = score_of(result)
    rows = writers.read_rows(place / "metrics.jsonl")
    validation, test = (
        [row.get(f"personal/{split}_{score}_weighted") for row in rows]
        for split in ("validation", "test")
    )
    if None in validation:
        raise UserError("A sweep needs validation examples; set config.data.validation_fraction.")
    best = max(range(len(rows)), key=lambda index: sign * validation[index])
    return validation[best], test[best]


def score_of(result: dict[str, Any]) -> tuple[str, int]:
    """Returns the metric of a run, and 1 if more of it is better, else -1."""
    return result.get("score_name", "accuracy"), 1 if result.get("more_is_better", True) else -1


def _report(algorithm: str, directory: pathlib.Path, settings, runs) -> Best:
    lines = []
    for setting in settings:
        own = [scores(place) for (used, _), place in runs if used == setting]
        lines.append((setting, *(statistics.mean(column) for column in zip(*own, strict=True))))
    score, sign = score_of(writers.read_json(runs[0][1] / "result.json"))
    lines.sort(key=lambda line: -math.inf if math.isnan(line[1]) else sign * line[1], reverse=True)
    with open(directory / f"sweep_{algorithm}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*settings[0], f"validation_{score}", f"test_{score}"])
        writer.writerows(
            [*setting.values(), *("diverged" if math.isnan(mean) else mean for mean in means)]
            for setting, *means in lines
        )
    table = rich.table.Table(title=f"{algorithm}, best validation {score} first")
    unit, factor, form = ("%", 100, ".2f") if score == "accuracy" else (score, 1, ".4g")
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
