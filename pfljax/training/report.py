"""Tables and plots of finished runs, side by side."""

from __future__ import annotations

import csv
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import rich.box
import rich.table
from matplotlib import figure

from pfljax.training import writers


class Run(NamedTuple):
    """One finished run.

    Attributes:
      result: the content of `result.json`.
      rows: of `metrics.jsonl`.
      clients: the arrays of `clients.npz`.
    """

    result: dict[str, Any]
    rows: list[dict[str, Any]]
    clients: dict[str, np.ndarray]


class Column(NamedTuple):
    """A column of the comparison.

    Attributes:
      title: its heading.
      path: where the number stands in `result.json`.
      unit: of the number shown, such as '%', 'ms' or 'kB'; for a score that is no accuracy, its
        name.
      scale: factor from the stored unit to the shown one.
    """

    title: str
    path: tuple[str, ...]
    unit: str
    scale: float


_SCORES = (
    ("personal", "personal", "last"),
    ("validated", "personal", "at_best_validation"),
    ("worst tenth", "personal", "worst_decile"),
    ("unseen", "personal", "unseen_last"),
    ("global", "global", "last"),
)
_COSTS = (
    Column("round", ("seconds_per_round",), "ms", 1000),
    Column("up", ("upload_bytes",), "kB", 1e-3),
    Column("down", ("download_bytes",), "kB", 1e-3),
)

EXPLANATION = (
    "Test accuracies weighted by test examples, mean ± standard deviation over seeds. personal: of "
    "the personalized models after the last round; validated: in the round that the validation "
    "examples choose; worst tenth: mean over the worst tenth of the clients; unseen: over clients "
    "that never trained with the others; global: of the global model. round: median time of one; "
    "up, down: what a client sends and receives in a round."
)


def score_of(runs: dict[str, list[Run]]) -> str:
    """Returns the metric by which runs are compared, which all of them share."""
    return next(iter(runs.values()))[0].result.get("score_name", "accuracy")


def explanation(runs: dict[str, list[Run]]) -> str:
    """Returns what the columns mean."""
    score = score_of(runs)
    names = {"accuracy": "accuracies", "mse": "mean squared errors (mse, less is better)"}
    return EXPLANATION.replace("accuracies", names.get(score, score))


def scores_of(result: dict[str, Any], model: str) -> dict[str, float | None] | None:
    """Returns the scores in `result.json` of the 'personal' or 'global' model, if there is one."""
    return result.get(f"{model}_accuracy", result.get(f"{model}_score"))


def shown(score: str, value: float) -> str:
    """Returns a score as text.

    Example:
      >>> shown("accuracy", 0.8125), shown("mse", 0.8125)
      ('accuracy 81.25%', 'mse 0.8125')
    """
    return f"{score} {value:.2%}" if score == "accuracy" else f"{score} {value:.4g}"


def read_run(directory: pathlib.Path) -> Run:
    """Reads what a finished run left in its work directory."""
    with np.load(directory / "clients.npz") as clients:
        arrays = dict(clients)
    return Run(
        writers.read_json(directory / "result.json"),
        writers.read_rows(directory / "metrics.jsonl"),
        arrays,
    )


def _number(result: dict[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = result
    for key in path:
        value = None if value is None else value.get(key)
    return value


def _values(runs: Sequence[Run], column: Column) -> list[float] | None:
    values = [_number(run.result, column.path) for run in runs]
    return None if any(value is None for value in values) else values


def columns_of(runs: dict[str, list[Run]]) -> list[Column]:
    """Returns the columns in which at least one method has a number."""
    score = score_of(runs)
    key, unit, scale = ("accuracy", "%", 100) if score == "accuracy" else ("score", score, 1)
    scores = [
        Column(title, (f"{model}_{key}", field), unit, scale) for title, model, field in _SCORES
    ]
    return [
        column
        for column in (*scores, *_COSTS)
        if any(_values(seeds, column) is not None for seeds in runs.values())
    ]


def cell(runs: Sequence[Run], column: Column) -> str:
    """Returns a method's entry: the mean over seeds and, for scores, the standard deviation.

    The deviation is the sample's (n - 1), for two seeds or more.
    """
    values = _values(runs, column)
    if values is None:
        return "-"
    mean = np.mean(values) * column.scale
    if column in _COSTS:
        return f"{mean:.4g}"
    places = 2 if column.unit == "%" else _places(mean)
    if len(values) == 1:
        return f"{mean:.{places}f}"
    return f"{mean:.{places}f} ± {np.std(values, ddof=1) * column.scale:.{places}f}"


def _places(mean: float) -> int:
    """The decimal places that show four digits of a mean; its deviation is shown with as many."""
    return max(0, 3 - math.floor(math.log10(abs(mean)))) if mean and math.isfinite(mean) else 3


def heading(column: Column) -> str:
    """Returns a column's title with its unit."""
    return f"{column.title} ({column.unit})"


def table(runs: dict[str, list[Run]], title: str) -> rich.table.Table:
    """Returns the comparison as a table for a terminal.

    Args:
      runs: `{method: [one run per seed]}`.
      title: above the table.
    """
    columns = columns_of(runs)
    view = rich.table.Table(
        title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1)
    )
    # A narrow terminal shortens numbers, which comparison.md has, rather than what they are of.
    view.add_column("method", no_wrap=True, min_width=max(map(len, runs)))
    for column in columns:
        view.add_column(f"{column.title}\n({column.unit})", justify="right", no_wrap=True)
    for method, seeds in runs.items():
        view.add_row(method, *(cell(seeds, column) for column in columns))
    return view


def write_markdown(
    path: pathlib.Path, runs: dict[str, list[Run]], title: str, pictures: Sequence[str] = ()
) -> None:
    """Writes the comparison as a Markdown table, and shows pictures that lie beside it."""
    columns = columns_of(runs)
    lines = [
        f"# {title}",
        "",
        "| method | " + " | ".join(heading(column) for column in columns) + " |",
        "|---" + "|---:" * len(columns) + "|",
    ]
    lines += [
        f"| {method} | " + " | ".join(cell(seeds, column) for column in columns) + " |"
        for method, seeds in runs.items()
    ]
    shown = [f"\n![{pathlib.Path(name).stem.replace('_', ' ')}]({name})" for name in pictures]
    path.write_text("\n".join([*lines, "", explanation(runs), *shown, ""]))


def write_csv(path: pathlib.Path, runs: dict[str, list[Run]]) -> None:
    """Writes one line per run, with every number of `result.json`, unrounded."""

    def flat(result, prefix=""):
        for key, value in result.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    lines = [dict(flat(run.result)) for seeds in runs.values() for run in seeds]
    names = list(dict.fromkeys(name for line in lines for name in line))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(lines)


def _colors(count: int):
    """Ten colors, again and again; the styles of lines tell them apart."""
    palette = matplotlib.colormaps["tab10"]
    return [palette(index % palette.N) for index in range(count)]


def axis(runs: dict[str, list[Run]]) -> tuple[str, float, str]:
    """Returns the score on an axis, the factor from stored to shown numbers, and their unit."""
    score = score_of(runs)
    if score == "accuracy":
        return score, 100, " (%)"
    more = next(iter(runs.values()))[0].result.get("more_is_better", True)
    return score, 1, "" if more else " (less is better)"


def plot_curves(path: pathlib.Path, runs: dict[str, list[Run]], title: str) -> None:
    """Draws test scores against rounds: a line per method, a band of one deviation over seeds."""
    score, factor, unit = axis(runs)
    key = f"personal/test_{score}_weighted"
    # The legend has a line for each method, in the order in which the lines end.
    height = max(4.5, 0.24 * len(runs))
    picture = figure.Figure(figsize=(7.5, height), layout="constrained")
    axes = picture.subplots()
    last = {method: np.mean([run.rows[-1][key] for run in seeds]) for method, seeds in runs.items()}
    for index, ((method, seeds), color) in enumerate(
        zip(runs.items(), _colors(len(runs)), strict=True)
    ):
        rounds = [row["round"] for row in seeds[0].rows]
        curves = factor * np.array([[row[key] for row in run.rows] for run in seeds])
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
    lines = sorted(axes.get_lines(), key=lambda line: last[line.get_label()], reverse=True)
    picture.legend(handles=lines, loc="outside right center", frameon=False)
    picture.savefig(path, dpi=150)


def plot_clients(path: pathlib.Path, runs: dict[str, list[Run]], title: str) -> None:
    """Draws, for each method, one point per client and seed, and the quartiles across them."""
    score, factor, unit = axis(runs)
    picture = figure.Figure(figsize=(max(7.5, 0.45 * len(runs)), 4.5), layout="constrained")
    axes = picture.subplots()
    scatter = np.random.default_rng(0)
    for place, (seeds, color) in enumerate(
        zip(runs.values(), _colors(len(runs)), strict=True), start=1
    ):
        key = f"personal_test_{score}"
        values = factor * np.concatenate([run.clients[key] for run in seeds])
        values = values[np.isfinite(values)]
        axes.boxplot(
            values,
            positions=[place],
            widths=0.55,
            showfliers=False,
            medianprops={"color": "black"},
        )
        places = place + scatter.uniform(-0.18, 0.18, len(values))
        axes.plot(places, values, ".", color=color, alpha=0.6, markersize=5)
    axes.set_xticks(range(1, len(runs) + 1), list(runs), rotation=30, ha="right")
    axes.set_ylabel(f"test {score} of each client{unit}")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=150)
