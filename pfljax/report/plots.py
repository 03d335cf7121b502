"""Plots of finished runs: learning curves, and the scores of all clients."""

from __future__ import annotations

import pathlib

import matplotlib
import numpy as np
from matplotlib import axes as axes_lib
from matplotlib import figure

from pfljax.report import tables
from pfljax.report.finished import Run


def _colors(count: int):
    """Returns colors that repeat after ten; line styles distinguish equal colors."""
    palette = matplotlib.colormaps["tab10"]
    return [palette(index % palette.N) for index in range(count)]


def axis(runs: dict[str, list[Run]]) -> tuple[str, float, str]:
    """Returns the score of an axis, the factor from stored to plotted values, and the unit."""
    score = tables.score_of(runs)
    if score == "accuracy":
        return score, 100, " (%)"
    more = next(iter(runs.values()))[0].result.get("more_is_better", True)
    return score, 1, "" if more else " (lower is better)"


def _scored(runs: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """Returns the methods whose runs all have scores."""
    return {name: seeds for name, seeds in runs.items() if not any(run.diverged for run in seeds)}


def size_of_curves(runs: dict[str, list[Run]]) -> tuple[float, float]:
    """Returns the width and the height of a picture of curves, in inches."""
    return 7.5, max(4.5, 0.24 * len(runs))


def plot_curves(path: pathlib.Path, runs: dict[str, list[Run]], title: str) -> None:
    """Draws test scores against rounds to a file."""
    picture = figure.Figure(figsize=size_of_curves(runs), layout="constrained")
    draw_curves(picture, runs, title)
    picture.savefig(path, dpi=150)


def draw_curves(
    picture: figure.Figure, runs: dict[str, list[Run]], title: str, metric: str | None = None
) -> axes_lib.Axes:
    """Draws test scores against rounds: a line per method, a band of one deviation over seeds.

    Args:
      picture: An empty figure.
      runs: The runs, `{method: [one run per seed]}`.
      title: The title above the curves.
      metric: The name of the metric; None for the score.

    Returns:
      The axes of the curves.
    """
    score, factor, unit = axis(runs)
    key = f"personal/test_{score}_weighted"
    runs = _scored(runs)
    axes = picture.subplots()
    last = {method: np.mean([run.rows[-1][key] for run in seeds]) for method, seeds in runs.items()}
    for index, ((method, seeds), color) in enumerate(
        zip(runs.items(), _colors(len(runs)), strict=True)
    ):
        by_round = [{row["round"]: row[key] for row in run.rows} for run in seeds]
        rounds = sorted(set.intersection(*map(set, by_round)))
        curves = factor * np.array([[values[round] for round in rounds] for values in by_round])
        mean = curves.mean(axis=0)
        style = ("-", "--", ":")[index // 10 % 3]
        axes.plot(rounds, mean, style, label=method, color=color, linewidth=1.8)
        if len(seeds) > 1:
            std = curves.std(axis=0, ddof=1)
            axes.fill_between(rounds, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
    axes.set_xlabel("round")
    axes.set_ylabel(f"test {score} of the personalized models{unit}")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    # The legend lists the methods in the order in which their lines end.
    lines = sorted(axes.get_lines(), key=lambda line: last[line.get_label()], reverse=True)
    picture.legend(handles=lines, loc="outside right center", frameon=False)
    return axes


def plot_clients(path: pathlib.Path, runs: dict[str, list[Run]], title: str) -> None:
    """Draws one point per client and seed for each method, and the quartiles across them."""
    score, factor, unit = axis(runs)
    runs = _scored(runs)
    picture = figure.Figure(figsize=(max(7.5, 0.45 * len(runs)), 4.5), layout="constrained")
    axes = picture.subplots()
    scatter = np.random.default_rng(0)
    for position, (seeds, color) in enumerate(
        zip(runs.values(), _colors(len(runs)), strict=True), start=1
    ):
        key = f"personal_test_{score}"
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
    axes.set_ylabel(f"test {score} of each client{unit}")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=150)
