"""Prints the tables of docs/results/data_sets.md: a row for each comparison, and for each sweep.

    python experiments/overview.py --comparisons=DIRECTORY [--sweeps=DIRECTORY]

DIRECTORY/STUDY is the work directory of `compare.py`, or of `sweep.py --every_method` over
learning rates, for the study `configs/STUDY.py`. A comparison's entries are the scores of the
personalized models in the round that validation examples choose, mean ± standard deviation over
seeds; the best is bold, and ≈ marks what the test examples cannot tell from it. A sweep's entries
are, for each method, the rates and their validation scores, the best first.
"""

from __future__ import annotations

import csv
import pathlib

import numpy as np
from absl import flags

from pfljax.algorithms import ALGORITHMS
from pfljax.cli import app
from pfljax.errors import UserError
from pfljax.report import finished, tables

_COMPARISONS = flags.DEFINE_string("comparisons", None, "Holds a work directory for each study.")
_SWEEPS = flags.DEFINE_string("sweeps", None, "The same for sweeps over learning rates.")


def read_comparison(directory: pathlib.Path) -> dict[str, list[finished.Run]]:
    """Returns `{method: [one run per seed]}` of a finished comparison."""
    found: dict[str, list[finished.Run]] = {}
    for place in sorted(directory.glob("*/seed_*/result.json")):
        found.setdefault(place.parent.parent.name, []).append(finished.read_run(place.parent))
    return found


def row(runs: dict[str, list[finished.Run]], methods: list[str]) -> list[str]:
    """Returns a comparison's entries: the number of test examples, and one for each method."""
    column = next(c for c in tables.columns_of(runs) if c.path[-1] == "at_best_validation")
    more = next(iter(runs.values()))[0].result.get("more_is_better", True)
    means = {
        name: float(np.mean([run.result[column.path[0]][column.path[1]] for run in seeds]))
        for name, seeds in runs.items()
        if not any(run.diverged for run in seeds)
    }
    best = (max if more else min)(means.values())
    within = tables.resolution(runs) or 0.0
    entries = []
    for name in methods:
        if name not in runs:
            entries.append("-")
        elif name not in means:
            entries.append("diverged")
        else:
            shown = tables.cell(runs[name], column)
            gap = abs(best - means[name])
            mark = " ≈" if 0 < gap < within else ""
            entries.append(f"**{shown}**" if gap == 0 else f"{shown}{mark}")
    examples = min(run.result["test_examples"] for seeds in runs.values() for run in seeds)
    return [f"{examples:,}", *entries]


def sweep_entry(path: pathlib.Path) -> str:
    """Returns the rates of `sweep_METHOD.csv` with their validation scores, the best first."""
    with path.open(newline="") as file:
        (_, score, _), *lines = csv.reader(file)
    percent = score == "validation_accuracy"

    def shown(value):
        if value == "diverged":
            return value
        return f"{100 * float(value):.1f}" if percent else f"{float(value):.4g}"

    return ", ".join(f"{rate}: {shown(validation)}" for rate, validation, _ in lines)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _studies(directory: str) -> list[pathlib.Path]:
    place = pathlib.Path(directory)
    if not place.is_dir():
        raise UserError(f"{place} is no directory; name one that holds a folder for each study.")
    return sorted(path for path in place.iterdir() if path.is_dir())


def main():
    if not (_COMPARISONS.value or _SWEEPS.value):
        raise UserError("Name --comparisons=DIRECTORY, --sweeps=DIRECTORY, or both.")
    if _COMPARISONS.value:
        studies = {path.name: read_comparison(path) for path in _studies(_COMPARISONS.value)}
        studies = {name: runs for name, runs in studies.items() if runs}
        methods = [name for name in ALGORITHMS if any(name in runs for runs in studies.values())]
        head = ["study", "test examples", *(f"`{name}`" for name in methods)]
        print(_table(head, [[f"`{name}`", *row(runs, methods)] for name, runs in studies.items()]))
    if _SWEEPS.value:
        rows = [
            [f"`{study.name}`", f"`{path.stem.removeprefix('sweep_')}`", sweep_entry(path)]
            for study in _studies(_SWEEPS.value)
            for path in sorted(study.glob("sweep_*.csv"))
        ]
        print(_table(["study", "method", "learning rate: validation score"], rows))


if __name__ == "__main__":
    app.run(main)
