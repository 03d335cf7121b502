"""Prints the tables of docs/results/data_sets.md: a row for each comparison, and for each sweep.

    python experiments/overview.py --comparisons=DIRECTORY [--sweeps=DIRECTORY]

DIRECTORY/CONFIG is the work directory of `compare.py`, or of `sweep.py --every_method` over
learning rates, with the config `configs/CONFIG.py`. The entries of a comparison are the scores of
the personalized models at the best validation round, mean ± standard deviation over seeds; the best
is bold, and ≈ marks results within its sampling error. The entries of a sweep are the learning
rates of each method with their validation scores, the best first.
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

_COMPARISONS = flags.DEFINE_string(
    "comparisons", None, "Directory with a work directory per config."
)
_SWEEPS = flags.DEFINE_string("sweeps", None, "The same for sweeps over learning rates.")


def read_comparison(directory: pathlib.Path) -> dict[str, list[finished.Run]]:
    """Returns `{method: [one run per seed]}` of a finished comparison."""
    found: dict[str, list[finished.Run]] = {}
    for path in sorted(directory.glob("*/seed_*/result.json")):
        found.setdefault(path.parent.parent.name, []).append(finished.read_run(path.parent))
    return found


def row(runs: dict[str, list[finished.Run]], methods: list[str]) -> list[str]:
    """Returns the entries of a comparison: the number of test examples, and one per method."""
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


def _work_directories(directory: str) -> list[pathlib.Path]:
    root = pathlib.Path(directory)
    if not root.is_dir():
        raise UserError(f"{root} is not a directory; pass one with a directory per config.")
    return sorted(path for path in root.iterdir() if path.is_dir())


def main():
    if not (_COMPARISONS.value or _SWEEPS.value):
        raise UserError("Pass --comparisons=DIRECTORY, --sweeps=DIRECTORY, or both.")
    if _COMPARISONS.value:
        studies = {
            path.name: read_comparison(path) for path in _work_directories(_COMPARISONS.value)
        }
        studies = {name: runs for name, runs in studies.items() if runs}
        methods = [name for name in ALGORITHMS if any(name in runs for runs in studies.values())]
        head = ["config", "test examples", *(f"`{name}`" for name in methods)]
        print(_table(head, [[f"`{name}`", *row(runs, methods)] for name, runs in studies.items()]))
    if _SWEEPS.value:
        rows = [
            [f"`{study.name}`", f"`{path.stem.removeprefix('sweep_')}`", sweep_entry(path)]
            for study in _work_directories(_SWEEPS.value)
            for path in sorted(study.glob("sweep_*.csv"))
        ]
        print(_table(["config", "method", "learning rate: validation score"], rows))


if __name__ == "__main__":
    app.run(main)
