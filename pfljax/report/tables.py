"""Tables of finished runs, which comparisons print and write."""

from __future__ import annotations

import csv
import math
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.box
import rich.console
import rich.table

from pfljax import metrics
from pfljax.metrics import bootstrap
from pfljax.report.finished import Run


class Column(NamedTuple):
    """A column of the comparison.

    Attributes:
      title: The heading of the column.
      path: The keys of the value in `result.json`.
      unit: The unit of the value shown, such as '%', 'ms' or 'kB'; for a score that is not shown
        in percent, its name; '' for none.
      scale: The factor from the stored unit to the unit shown.
    """

    title: str
    path: tuple[str, ...]
    unit: str
    scale: float


_SCORES = (
    ("personalized", "personal", "last"),
    ("at best validation", "personal", "at_best_validation"),
    ("worst decile", "personal", "worst_decile"),
    ("unseen", "personal", "unseen_last"),
    ("global", "global", "last"),
)


_COSTS = (
    Column("time per round", ("seconds_per_round",), "ms", 1000),
    Column("upload", ("upload_bytes",), "kB", 1e-3),
    Column("download", ("download_bytes",), "kB", 1e-3),
)


# Maximum width of a heading in characters, so that all columns fit into a terminal.
_HEADING_WIDTH = 12

EXPLANATION = (
    "Test accuracies weighted by test examples, mean ± standard deviation over seeds. "
    "personalized: the personalized models after the last round; at best validation: in the round "
    "with the best validation score; worst decile: mean over the 10 % of clients with the lowest "
    "scores; unseen: held-out clients, which never train; global: the global model. time per "
    "round: median; upload, download: per client and round."
)


class Form(NamedTuple):
    """How a metric is shown.

    Attributes:
      title: The name of the metric.
      percent: Whether it is shown in percent.
      more_is_better: Whether a larger value is better.
    """

    title: str
    percent: bool
    more_is_better: bool


def form_of(runs: dict[str, list[Run]], name: str) -> Form:
    """Returns how a metric of some runs is shown, as their results say."""
    results = [run.result for seeds in runs.values() for run in seeds]
    # A run that diverged has no metrics.
    return form_in(
        next((one for one in results if name in one.get("metrics", ())), results[0]), name
    )


def form_in(result: dict[str, Any], name: str) -> Form:
    """Returns how a metric is shown, as `result.json` says; older ones have the score only."""
    more = result.get("more_is_better", True)
    older = {"title": name, "percent": metrics.is_percent(name), "more_is_better": more}
    found = result.get("metrics", {}).get(name, older)
    return Form(*(found[field] for field in Form._fields))


def further_metrics(runs: dict[str, list[Run]]) -> list[str]:
    """Returns the metrics that are shown beside the score."""
    each = [run.result.get("further_metrics", ()) for seeds in runs.values() for run in seeds]
    return list(dict.fromkeys(name for names in each for name in names))


def score_of(runs: dict[str, list[Run]]) -> str:
    """Returns the metric by which runs are compared, the same for all of them."""
    return next(iter(runs.values()))[0].result.get("score_name", "accuracy")


def explanation(runs: dict[str, list[Run]]) -> str:
    """Returns the explanation of the columns."""
    score = score_of(runs)
    form = form_of(runs, score)
    other = form.title if form.more_is_better else f"{form.title} (lower is better)"
    names = {"accuracy": "accuracies", "mse": "mean squared errors (mse, lower is better)"}
    sentences = [EXPLANATION.replace("accuracies", names.get(score, other))]
    forms = [form_of(runs, name) for name in further_metrics(runs)]
    if forms:
        titles = ", ".join(
            form.title if form.more_is_better else f"{form.title} (lower is better)"
            for form in forms
        )
        sentences.append(
            f"{titles}: computed for each client from all its test examples, after the last round."
        )
    return " ".join(sentences)


def resolution(runs: dict[str, list[Run]]) -> float | None:
    """Returns the smallest difference of two accuracies that exceeds their sampling error.

    This is half the width of a 95 % interval for the difference of two proportions `p` of `n`
    independent test examples, `1.96 sqrt(2 p (1 - p) / n)`. Here `p` is the best mean accuracy of
    personalized models, at most `1 - 1/n`, and `n` the smallest number of test examples of a seed.

    Args:
      runs: The runs, `{method: [one run per seed]}`.

    Returns:
      The difference, from 0 to 1; None if the score is not accuracy, or if a result lacks the
      number of test examples.
    """
    found = [run.result.get("test_examples") for seeds in runs.values() for run in seeds]
    best = _best(runs)
    if score_of(runs) != "accuracy" or best is None or not all(found):
        return None
    n = min(found)
    p = min(max(best, 1 / n), 1 - 1 / n)
    return 1.96 * math.sqrt(2 * p * (1 - p) / n)


def mean_score(runs: Sequence[Run]) -> float | None:
    """Returns a method's mean score of personalized models over seeds; None if a seed has none."""
    score = runs[0].result.get("score_name", "accuracy")
    values = _values(runs, Column("", (metrics.result_key("personal", score), "last"), "", 1))
    return None if values is None else float(np.mean(values))


def _best(runs: dict[str, list[Run]]) -> float | None:
    """Returns the largest mean score of personalized models; None if there is none."""
    means = [mean_score(seeds) for seeds in runs.values()]
    return max((mean for mean in means if mean is not None), default=None)


def notes(runs: dict[str, list[Run]]) -> list[str]:
    """Returns the notes below a comparison: the columns, the sampling error, diverged runs."""
    lines = [explanation(runs)]
    found = resolution(runs)
    if found is not None:
        n = min(run.result["test_examples"] for seeds in runs.values() for run in seeds)
        lines.append(
            f"{n:,} test examples per seed: one is {100 / n:.2g} points, and differences below "
            f"{100 * found:.2g} points are within their sampling error (95 %); {_CLOSE_TO_BEST} "
            "marks methods that are no further from the best."
        )
    idle = {
        (run.result.get("clients_without_a_step", 0), run.result.get("num_clients"))
        for seeds in runs.values()
        for run in seeds
    }
    lines += [
        f"{count} of {total} clients do not fill a batch and never train (config.drop_remainder)."
        for count, total in sorted(idle)
        if count
    ]
    lines += _other_models(runs)
    lines += _undefined(runs)
    lines += [
        run.result["diverged"]["reason"] for seeds in runs.values() for run in seeds if run.diverged
    ]
    return list(dict.fromkeys(lines))


def _other_models(runs: dict[str, list[Run]]) -> list[str]:
    """Returns a sentence on each method whose model is not that of the first method."""
    of_methods = {name: seeds[0].result.get("model") for name, seeds in runs.items()}
    first = next(iter(of_methods.values()))
    return [
        f"{name} has the model {model}, the others {first}."
        for name, model in of_methods.items()
        if model != first
    ]


def _undefined(runs: dict[str, list[Run]]) -> list[str]:
    """Returns a sentence on each shown metric that is undefined for some tested clients."""
    of_runs = [run.result.get("metrics", {}) for seeds in runs.values() for run in seeds]
    lines = []
    for name in (score_of(runs), *further_metrics(runs)):
        counts = {(one[name]["clients"], one["loss"]["clients"]) for one in of_runs if name in one}
        lines += [
            f"{form_of(runs, name).title} is defined for {some} of {total} clients; the others are "
            "left out of its means."
            for some, total in sorted(counts)
            if some != total
        ]
    return lines


def scores_of(result: dict[str, Any], model: str) -> dict[str, float | None] | None:
    """Returns the scores of the 'personal' or 'global' model in `result.json`, if any."""
    return result.get(metrics.result_key(model, result.get("score_name", "accuracy")))


def shown(score: str, value: float) -> str:
    """Returns a score as text.

    Example:
      >>> shown("accuracy", 0.8125), shown("mse", 0.8125)
      ('accuracy 81.25%', 'mse 0.8125')
    """
    return f"{score} {value:.2%}" if metrics.is_percent(score) else f"{score} {value:.4g}"


def _number(result: dict[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = result
    for key in path:
        value = None if value is None else value.get(key)
    return value


def _values(runs: Sequence[Run], column: Column) -> list[float] | None:
    values = [_number(run.result, column.path) for run in runs]
    return None if any(value is None for value in values) else values


def columns_of(runs: dict[str, list[Run]]) -> list[Column]:
    """Returns the columns in which at least one method has a value."""
    score = score_of(runs)
    unit, scale = ("%", 100) if form_of(runs, score).percent else (score, 1)
    scores = [
        Column(title, (metrics.result_key(model, score), field), unit, scale)
        for title, model, field in _SCORES
    ]
    further = [
        column for name in further_metrics(runs) for column in _of_metric(name, form_of(runs, name))
    ]
    return [
        column
        for column in (*scores, *further, *_COSTS)
        if any(_values(seeds, column) is not None for seeds in runs.values())
    ]


def _of_metric(name: str, form: Form) -> list[Column]:
    """Returns the columns of a metric that is shown beside the score."""
    unit, scale = ("%", 100) if form.percent else ("", 1)
    titles = {"personal": form.title, "global": f"global {form.title}"}
    return [
        Column(title, ("metrics", name, model, "last"), unit, scale)
        for model, title in titles.items()
    ]


# Marks accuracies within the sampling error of the best one.
_CLOSE_TO_BEST = "≈"


def cell(runs: Sequence[Run], column: Column) -> str:
    """Returns a method's entry: the mean over seeds and, for scores, the standard deviation.

    The deviation is the sample deviation (n - 1), for two or more seeds. If runs diverged, the
    first column shows their number, and the other columns are empty.
    """
    diverged = sum(run.diverged for run in runs)
    if diverged:
        first = column.title == _SCORES[0][0]
        some = "diverged" if diverged == len(runs) else f"{diverged} of {len(runs)} diverged"
        return some if first else "-"
    values = _values(runs, column)
    if values is None:
        return "-"
    mean = np.mean(values) * column.scale
    if column in _COSTS:
        return f"{mean:.4g}"
    decimals = 2 if column.unit == "%" else _decimals(mean)
    if len(values) == 1:
        return f"{mean:.{decimals}f}"
    return f"{mean:.{decimals}f} ± {np.std(values, ddof=1) * column.scale:.{decimals}f}"


def mean_gain(gains: np.ndarray, seed: int) -> str:
    """Returns a mean over clients with its 95 % interval as text; '-' if no client gains or loses.

    Args:
      gains: `[n]`, the gain of each client.
      seed: The seed of the bootstrap over clients.
    """
    if not gains.any():
        return "-"
    low, high = bootstrap.interval_of_mean(gains, seed)
    return f"{gains.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def percent_over_seeds(values: Sequence[float], decimals: int = 1) -> str:
    """Returns fractions as mean ± standard deviation in percent; no deviation of a single one.

    Example:
      >>> percent_over_seeds([0.5, 0.7]), percent_over_seeds([0.5]), percent_over_seeds([])
      ('60.0 ± 14.1', '50.0', '-')
    """
    if not len(values) or np.isnan(values).any():
        return "-"
    shown = f"{100 * np.mean(values):.{decimals}f}"
    if len(values) == 1:
        return shown
    return f"{shown} ± {100 * np.std(values, ddof=1):.{decimals}f}"


def _decimals(mean: float) -> int:
    """Returns the decimals that show four significant digits of a mean, also for its deviation."""
    return max(0, 3 - math.floor(math.log10(abs(mean)))) if mean and math.isfinite(mean) else 3


def cells(runs: dict[str, list[Run]], columns: Sequence[Column]) -> list[tuple[str, ...]]:
    """Returns the rows of the comparison: the name of the method and an entry per column."""
    within, best = resolution(runs), _best(runs)
    marked = [column for column in columns if column.path == ("personal_accuracy", "last")]
    rows = []
    for method, seeds in runs.items():
        entries = [cell(seeds, column) for column in columns]
        for column in marked if within is not None else ():
            values = _values(seeds, column)
            if values is not None and not any(run.diverged for run in seeds):
                if 0 < best - float(np.mean(values)) < within:
                    entries[columns.index(column)] += f" {_CLOSE_TO_BEST}"
        rows.append((method, *entries))
    return rows


def heading(column: Column) -> str:
    """Returns the title of a column with its unit."""
    return f"{column.title} ({column.unit})" if column.unit else column.title


def heading_lines(heading: str) -> list[str]:
    """Returns the lines of a heading in a terminal, the unit on one of its own.

    Example:
      >>> heading_lines("time per round (ms)")
      ['time per', 'round', '(ms)']
    """
    title, _, unit = heading.partition(" (")
    return textwrap.wrap(title, _HEADING_WIDTH) + ([f"({unit}"] if unit else [])


def empty(title: str) -> rich.table.Table:
    """Returns a table without columns for a terminal."""
    return rich.table.Table(
        title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1)
    )


def table(runs: dict[str, list[Run]], title: str) -> rich.console.Group:
    """Returns the comparison for a terminal: a table, and one below with the further metrics.

    Args:
      runs: The runs, `{method: [one run per seed]}`.
      title: The title above the table.
    """
    columns = columns_of(runs)
    further = [column for column in columns if column.path[0] == "metrics"]
    first = [column for column in columns if column not in further]
    views = [_view(runs, first, title)]
    if further:
        views.append(_view(runs, further, "further metrics, after the last round"))
    return rich.console.Group(*views)


def _view(runs: dict[str, list[Run]], columns: Sequence[Column], title: str) -> rich.table.Table:
    """Returns some columns of the comparison as a table for a terminal."""
    view = empty(title)
    # A narrow terminal truncates numbers, which are in comparison.md, and not method names.
    view.add_column("method", no_wrap=True, min_width=max(map(len, runs)))
    for column in columns:
        lines = heading_lines(heading(column))
        view.add_column("\n".join(lines), justify="right", no_wrap=True)
    for row in cells(runs, columns):
        view.add_row(*row)
    return view


def write_markdown(
    path: pathlib.Path,
    runs: dict[str, list[Run]],
    title: str,
    pictures: Sequence[str] = (),
    below: Sequence[str] = (),
) -> None:
    """Writes the comparison as a Markdown table.

    Args:
      path: The path of the file.
      runs: The runs, `{method: [one run per seed]}`.
      title: The heading of the file.
      pictures: The names of image files in the same directory to include.
      below: The sentences below the table; by default `notes(runs)`.
    """
    columns = columns_of(runs)
    lines = [
        f"# {title}",
        "",
        "| method | " + " | ".join(heading(column) for column in columns) + " |",
        "|---" + "|---:" * len(columns) + "|",
    ]
    lines += ["| " + " | ".join(row) + " |" for row in cells(runs, columns)]
    shown = [f"\n![{pathlib.Path(name).stem.replace('_', ' ')}]({name})" for name in pictures]
    sentences = [line for note in below or notes(runs) for line in ("", note)]
    path.write_text("\n".join([*lines, *sentences, *shown, ""]))


def write_csv(path: pathlib.Path, runs: dict[str, list[Run]]) -> None:
    """Writes one line per run, with every value of `result.json` but the provenance, unrounded."""

    def flat(result, prefix=""):
        for key, value in result.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    found = [dict(flat(run.result)) for seeds in runs.values() for run in seeds]
    lines = [
        {name: value for name, value in line.items() if not name.startswith("provenance.")}
        for line in found
    ]
    names = list(dict.fromkeys(name for line in lines for name in line))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(lines)
