"""The table of a comparison in several scenarios: one row for each method, the best one first."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np
import rich.table

from pfljax.report import tables
from pfljax.report.comparison import Report

NAME = "scenarios.md"

# The columns of `report.tables` that each scenario has, and those that are shown of the last one
# only, as the scenarios hardly differ in them.
_OF_EACH = ("personalized", "worst decile")
_OF_LAST = ("time per round", "upload", "download")


def order(scenarios: Mapping[str, Report]) -> dict[str, float]:
    """Returns the mean rank of each method over the scenarios, the best mean score first.

    Rank 1 is that of the best mean score of personalized models over seeds; methods with equal
    scores share the mean of their ranks. A method that diverged with a seed is behind all others.

    Args:
      scenarios: The scenarios by name, all with the same methods and the same score.
    """
    # Imported here, as it takes a third of a second.
    from scipy import stats

    first = next(iter(scenarios.values())).runs
    methods = [name for name in first if all(name in each.runs for each in scenarios.values())]
    more_is_better = tables.form_of(first, tables.score_of(first)).more_is_better
    losses = []
    for each in scenarios.values():
        scores = [tables.mean_score(each.runs[name]) for name in methods]
        worst = [np.inf if score is None else score for score in scores]
        losses.append([-score if more_is_better and score < np.inf else score for score in worst])
    ranks = np.mean([stats.rankdata(each) for each in losses], axis=0)
    by_score = np.lexsort((ranks, np.mean(losses, axis=0)))
    return {methods[index]: float(ranks[index]) for index in by_score}


def _rows(scenarios: Mapping[str, Report]) -> tuple[list[tuple[str, str]], list[tuple[str, ...]]]:
    """Returns the headings, each a scenario and a title, and the rows of the table."""
    headings = [("", "method"), ("", "mean rank")]
    ranks = order(scenarios)
    found = {name: [name, f"{rank:.1f}"] for name, rank in ranks.items()}
    for number, (scenario, each) in enumerate(scenarios.items()):
        titles = (*_OF_EACH, *_OF_LAST) if number == len(scenarios) - 1 else _OF_EACH
        columns = [one for one in tables.columns_of(each.runs) if one.title in titles]
        headings += [
            ("" if one.title in _OF_LAST else scenario, tables.heading(one)) for one in columns
        ]
        for name, *entries in tables.cells(each.runs, columns):
            if name in found:
                found[name] += entries
    return headings, [tuple(row) for row in found.values()]


def table(scenarios: Mapping[str, Report]) -> rich.table.Table:
    """Returns the table for a terminal."""
    headings, rows = _rows(scenarios)
    title = f"{len(rows)} methods in {len(scenarios)} scenarios, the best mean score first"
    view = tables.empty(title)
    for scenario, title in headings:
        lines = [line for line in (scenario, *tables.heading_lines(title)) if line]
        justify = "left" if title == "method" else "right"
        view.add_column("\n".join(lines), justify=justify, no_wrap=True)
    for row in rows:
        view.add_row(*row)
    return view


def write(path: pathlib.Path, scenarios: Mapping[str, Report]) -> None:
    """Writes the table in Markdown, with the titles and notes of the scenarios below it.

    Args:
      path: The path of the file.
      scenarios: The scenarios by name.
    """
    headings, rows = _rows(scenarios)
    titles = [f"{scenario}: {title}" if scenario else title for scenario, title in headings]
    lines = [
        f"# {len(rows)} methods in {len(scenarios)} scenarios",
        "",
        "| " + " | ".join(titles) + " |",
        "|---" + "|---:" * (len(titles) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "Sorted by the mean over the scenarios of the personalized score. mean rank: of the method "
        "by that score in each scenario, mean over the scenarios.",
    ]
    first = next(iter(scenarios.values())).notes
    shared = [note for note in first if all(note in each.notes for each in scenarios.values())]
    lines += [line for note in shared for line in ("", note)]
    for name, each in scenarios.items():
        own = [note for note in each.notes if note not in shared]
        lines += ["", " ".join([f"{name}: {each.title}.", *own])]
    path.write_text("\n".join(lines) + "\n")
