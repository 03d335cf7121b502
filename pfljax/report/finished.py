"""Finished runs, as read from their work directories."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pfljax import metrics
from pfljax.training.run import writers


class Run(NamedTuple):
    """One finished run.

    Attributes:
      result: The content of `result.json`.
      rows: The rows of `metrics.jsonl`.
      clients: The arrays of `clients.npz`; empty for a run that diverged.
    """

    result: dict[str, Any]
    rows: list[dict[str, Any]]
    clients: dict[str, np.ndarray]

    @property
    def diverged(self) -> bool:
        """Whether the run ended with a state or loss that is not finite; it then has no scores."""
        return "diverged" in self.result


def read_run(directory: pathlib.Path) -> Run:
    """Reads the results of a finished run from its work directory."""
    result, arrays = writers.read_json(directory / "result.json"), {}
    if "diverged" not in result:
        with np.load(directory / "clients.npz") as clients:
            arrays = dict(clients)
    return Run(result, writers.read_rows(directory / "metrics.jsonl"), arrays)


def collect(
    directory: pathlib.Path, methods: Sequence[str], seeds: Sequence[int]
) -> tuple[dict[str, list[Run]], list[str]]:
    """Reads the runs of a comparison, and comparable ones of other methods in the directory.

    Args:
      directory: The work directory of the comparison, with subdirectories `METHOD/seed_SEED`.
      methods: The methods of the comparison; all their runs are finished.
      seeds: The seeds of the comparison.

    Returns:
      The runs, `{method: [one run per seed]}`, and a sentence on each method that is omitted
      because its runs have other clients, rounds, models or seeds.
    """
    runs = {
        name: [read_run(directory / name / f"seed_{seed}") for seed in seeds] for name in methods
    }
    like, omitted = next(iter(runs.values())), []
    for subdirectory in sorted(path for path in directory.iterdir() if path.is_dir()):
        if subdirectory.name in runs or not any(subdirectory.glob("seed_*/result.json")):
            continue
        directories = [subdirectory / f"seed_{seed}" for seed in seeds]
        if not all((run_directory / "result.json").exists() for run_directory in directories):
            omitted.append(f"{subdirectory.name} is not shown: some of the seeds are missing.")
            continue
        found = [read_run(run_directory) for run_directory in directories]
        differs = first_difference(like, found)
        if differs:
            omitted.append(f"{subdirectory.name} is not shown: its runs have {differs}.")
        else:
            runs[subdirectory.name] = found
    return _at_common_rounds(runs, omitted)


_COMPARABLE = (
    *("dataset", "partition", "split", "standardize", "num_clients", "model", "rounds"),
    *("data_seed", "score_name"),
)
# Keys that runs of earlier versions do not record.
_LATER = ("split", "standardize")


def first_difference(
    like: Sequence[Run], found: Sequence[Run], *, ignored: Sequence[str] = ()
) -> str | None:
    """Returns how runs differ from others in a way that makes their scores incomparable.

    Args:
      like: The runs that others are compared with, one for each seed.
      found: The other runs, with the same seeds.
      ignored: The keys of `result.json` that may differ.

    Returns:
      A part of a sentence; None if they do not differ.
    """
    for one, other in zip(like, found, strict=True):
        for key in [key for key in _COMPARABLE if key not in ignored]:
            wanted, has = one.result.get(key), other.result.get(key)
            unknown = key in _LATER and None in (wanted, has)
            if wanted != has and not unknown:
                return f"{key} {has!r} instead of {wanted!r}"
    return None


def _at_common_rounds(
    runs: dict[str, list[Run]], notes: list[str]
) -> tuple[dict[str, list[Run]], list[str]]:
    """Restricts runs that were evaluated at different rounds to the rounds that all share."""
    scored = [run for seeds in runs.values() for run in seeds if run.rows and not run.diverged]
    rounds = [{row["round"] for row in run.rows} for run in scored]
    common = set.intersection(*rounds) if rounds else set()
    if all(each == common for each in rounds):
        return runs, notes

    def of(run):
        rows = [row for row in run.rows if row["round"] in common]
        if run.diverged or not rows:
            return run
        return Run(_chosen_again(run.result, rows), rows, run.clients)

    note = (
        "The runs were evaluated at different rounds: curves and best validation rounds use the "
        f"{len(common)} rounds that all runs share."
    )
    return {name: [of(run) for run in seeds] for name, seeds in runs.items()}, [*notes, note]


def _chosen_again(result: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a result whose values over rounds are recomputed from some rows."""
    score, more = result.get("score_name", "accuracy"), result.get("more_is_better", True)
    changed = {**result, "metrics": {**result.get("metrics", {})}}
    for model in ("personal", "global"):
        round = metrics.best_round(rows, model, score, more_is_better=more)

        def again(values, name, more, model=model, round=round):
            across = metrics.across_rounds(rows, model, name, round, more_is_better=more)
            return None if values is None else {**values, **across}

        key = metrics.result_key(model, score)
        changed[key] = again(result.get(key), score, more)
        for name, entry in changed["metrics"].items():
            found = again(entry[model], name, entry["more_is_better"])
            changed["metrics"][name] = {**entry, model: found}
    return changed
