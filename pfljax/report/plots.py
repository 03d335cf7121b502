"""Plots of finished runs: learning curves, and the scores of all clients."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import axes as axes_lib
from matplotlib import figure

from pfljax.errors import UserError
from pfljax.report import tables
from pfljax.report.finished import Run

# Dashes and gaps, one pattern for every ten curves: enough for a hundred methods.
_LINE_STYLES = (
    *("-", "--", ":", "-.", (0, (8, 2)), (0, (1, 3)), (0, (5, 1, 1, 1, 1, 1))),
    *((0, (3, 3)), (0, (8, 2, 2, 2)), (0, (5, 1))),
)


def looks_of(count: int) -> list[dict[str, Any]]:
    """Returns a color and a line style for each of `count` curves, all different up to 100."""
    return [
        {"color": color, "linestyle": _LINE_STYLES[index // 10 % len(_LINE_STYLES)]}
        for index, color in enumerate(_colors(count))
    ]


def _colors(count: int):
    """Returns colors that repeat after ten; line styles distinguish equal colors."""
    palette = matplotlib.colormaps["tab10"]
    return [palette(index % palette.N) for index in range(count)]


def axis(runs: dict[str, list[Run]], name: str | None = None) -> tuple[str, float, str]:
    """Returns the name of an axis, the factor from stored to plotted values, and the unit.

    Args:
      runs: The runs.
      name: The metric of the axis; None for the score.
    """
    form = tables.form_of(runs, name or tables.score_of(runs))
    notes = ["%"] * form.percent + ["lower is better"] * (not form.more_is_better)
    unit = f" ({', '.join(notes)})" if notes else ""
    return form.title, 100 if form.percent else 1, unit


def _scored(runs: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """Returns the methods whose runs all have scores."""
    return {name: seeds for name, seeds in runs.items() if not any(run.diverged for run in seeds)}


def size_of_curves(runs: dict[str, list[Run]], panels: int = 1) -> tuple[float, float]:
    """Returns the width and the height of a picture of curves, in inches."""
    return 7.5, max(4.5 + 3 * (panels - 1), 0.24 * len(runs))


def wrapped(title: str) -> str:
    """Returns a title in lines that fit the width of a figure."""
    return textwrap.fill(title, 80)


def plot_curves(path: pathlib.Path, runs: dict[str, list[Run]], title: str) -> None:
    """Draws test metrics against rounds to a file: the score, and each further metric below."""
    names = [tables.score_of(runs), *tables.further_metrics(runs)]
    picture = figure.Figure(figsize=size_of_curves(runs, len(names)), layout="constrained")
    _draw_panels(picture, runs, title, names)
    picture.savefig(path, dpi=150)


def draw_curves(
    picture: figure.Figure, runs: dict[str, list[Run]], title: str, metric: str | None = None
) -> axes_lib.Axes:
    """Draws a test metric against rounds: a line per method, a band of one deviation over seeds.

    Args:
      picture: An empty figure.
      runs: The runs, `{method: [one run per seed]}`.
      title: The title above the curves.
      metric: The name of the metric; None for the score.

    Returns:
      The axes of the curves.

    Raises:
      UserError: No run has the metric.
    """
    if metric is not None:
        rows = [row for seeds in runs.values() for run in seeds for row in run.rows]
        ends = ("personal/test_", "_weighted")
        keys = dict.fromkeys(key for row in rows for key in row)
        known = [
            key.removeprefix(ends[0]).removesuffix(ends[1])
            for key in keys
            if key.startswith(ends[0]) and key.endswith(ends[1])
        ]
        if metric not in known:
            raise UserError(
                f"No run has the metric {metric!r}; known are {', '.join(known)}. Others are "
                "computed if config.metrics names them."
            )
    return _draw_panels(picture, runs, title, [metric or tables.score_of(runs)])[0]


def _draw_panels(
    picture: figure.Figure, runs: dict[str, list[Run]], title: str, names: Sequence[str]
) -> list[axes_lib.Axes]:
    """Draws a panel for each of several metrics, and a legend; returns their axes."""
    panels = list(picture.subplots(len(names), sharex=True, squeeze=False)[:, 0])
    # One color and style for each method, whichever panels it is in.
    drawn = _scored(runs)
    looks = dict(zip(drawn, looks_of(len(drawn)), strict=True))
    for axes, name in zip(panels, names, strict=True):
        _draw_panel(axes, drawn, name, axis(runs, name), looks)
    panels[-1].set_xlabel("round")
    panels[0].set_title(wrapped(title), loc="left", fontsize=10)
    lines = {line.get_label(): line for axes in panels[::-1] for line in axes.get_lines()}
    key = f"personal/test_{names[0]}_weighted"

    def last(method):
        return np.mean([run.rows[-1].get(key, -np.inf) for run in drawn[method]])

    # The legend lists the methods in the order in which their lines end.
    handles = [lines[method] for method in sorted(lines, key=last, reverse=True)]
    picture.legend(handles=handles, loc="outside right center", frameon=False)
    return panels


def _draw_panel(
    axes: axes_lib.Axes,
    runs: dict[str, list[Run]],
    name: str,
    form: tuple[str, float, str],
    looks: dict[str, dict],
) -> None:
    """Draws the panel of a metric, with the methods whose rows all have a value.

    Args:
      axes: The panel.
      runs: The runs, without methods that diverged.
      name: The metric.
      form: The result of `axis` for the metric.
      looks: Color and style of each method.
    """
    label, factor, unit = form
    key = f"personal/test_{name}_weighted"
    for method, seeds in runs.items():
        by_round = [{row["round"]: row.get(key) for row in run.rows} for run in seeds]
        if any(value is None for values in by_round for value in values.values()):
            continue
        rounds = sorted(set.intersection(*map(set, by_round)))
        curves = factor * np.array([[values[round] for round in rounds] for values in by_round])
        mean = curves.mean(axis=0)
        axes.plot(rounds, mean, label=method, linewidth=1.8, **looks[method])
        if len(seeds) > 1:
            std = curves.std(axis=0, ddof=1)
            color = looks[method]["color"]
            axes.fill_between(rounds, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
    axes.set_ylabel(f"test {label}{unit}\nof the personalized models")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def plot_clients(path: pathlib.Path, runs: dict[str, list[Run]], title: str) -> None:
    """Draws one point per client and seed for each method, and the quartiles across them."""
    label, factor, unit = axis(runs)
    runs = _scored(runs)
    picture = figure.Figure(figsize=(max(7.5, 0.45 * len(runs)), 4.5), layout="constrained")
    axes = picture.subplots()
    scatter = np.random.default_rng(0)
    for position, (seeds, color) in enumerate(
        zip(runs.values(), _colors(len(runs)), strict=True), start=1
    ):
        key = f"personal_test_{tables.score_of(runs)}"
        values = factor * np.concatenate([run.clients[key] for run in seeds])
        values = values[np.isfinite(values)]
        axes.boxplot(
            values,
            positions=[position],
            widths=0.55,
            showfliers=False,
            medianprops={"color": "black"},
        )
        positions = position + scatter.uniform(-0.18, 0.18, len(values))
        axes.plot(positions, values, ".", color=color, alpha=0.6, markersize=5)
    axes.set_xticks(range(1, len(runs) + 1), list(runs), rotation=30, ha="right")
    axes.set_ylabel(f"test {label} of each client{unit}")
    axes.set_title(wrapped(title), loc="left", fontsize=10)
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=150)
