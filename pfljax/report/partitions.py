"""Tables and plots of partitions."""

from __future__ import annotations

import pathlib

import ml_collections
import numpy as np
import rich.box
import rich.table
from matplotlib import figure, ticker

from pfljax import data
from pfljax.data.partition import PARTITIONS, settings_of
from pfljax.data.statistics import Statistics
from pfljax.report import plots

PICTURES = ("partition_classes.png", "partition_sizes.png", "partition_distances.png")
CLASSES, SIZES, DISTANCES = PICTURES

_SEEN, _UNSEEN = "tab:blue", "tab:orange"
_MOST_IN_PICTURE = 1000  # clients; larger populations are subsampled at equal intervals
_MOST_IN_ROW = 100
_TALLEST = 14.0  # inches
_TITLE = {"loc": "left", "fontsize": 10}


def name_partition(config: ml_collections.ConfigDict) -> str:
    """Returns the name of the partition of `config.data` in titles.

    Example:
      >>> from pfljax.training.study.config import default_config
      >>> name_partition(default_config().data)
      'Dirichlet(0.1)'
    """
    name = "natural" if config.name not in data.SOURCES else config.partition
    if name == "dirichlet":
        words = f"Dirichlet({config.alpha:g})"
    elif name == "pathological":
        shares = "" if config.balanced else ", unequal fractions"
        words = f"{config.classes_per_client} classes each{shares}"
    elif name == "groups":
        words = f"{config.num_groups} groups by {config.group_by}"
    elif name in PARTITIONS:
        given = {key: config[key] for key in settings_of(name)}
        given_settings = [f"{key}={value}" for key, value in given.items() if value is not None]
        words = f"{name} ({', '.join(given_settings)})" if given_settings else name
    else:
        words = name
    shifts = [kind for kind in (config.feature_shift, config.concept_shift) if kind != "none"]
    return words + "".join(f", {kind} in {config.num_groups} groups" for kind in shifts)


def table(found: Statistics) -> rich.table.Table:
    """Returns the table of a partition for a terminal.

    Args:
      found: The result of `data.statistics.measure`.
    """
    view = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    view.add_column("per client")
    for column in ("min", "median", "mean", "max", "all clients"):
        view.add_column(column, justify="right", no_wrap=True)

    def add(name, values, spec, total=""):
        spread = (values.min(), np.median(values), values.mean(), values.max())
        view.add_row(name, *(format(float(value), spec(value)) for value in spread), total)

    def whole(value):
        return ",.0f" if value >= 1000 else ".4g"

    def precise(_):
        return ".3f"

    for name, sizes in {**found.sizes, "all": found.totals}.items():
        label = "training" if name == "train" else name
        add(f"{label} examples", sizes, whole, f"{sizes.sum():,}")
    if found.counts.size:
        held = np.count_nonzero(found.counts.sum(axis=0))
        add("classes", np.count_nonzero(found.counts, axis=1), whole, f"{held}")
        add("distance to the pool", found.to_pool, precise)
    if len(found.compared) > 1:
        pairwise = found.distances[np.triu_indices(len(found.compared), 1)]
        add("distance to another client", pairwise, precise)
    return view


def imbalance(found: Statistics) -> str:
    """Returns sentences on the imbalance of clients and classes, and on the distance used."""
    totals = found.totals
    words = (
        f"The largest client has {totals.max() / totals.min():.3g} times the examples of the "
        f"smallest (coefficient of variation {totals.std() / totals.mean():.2f})"
    )
    if not found.counts.size:
        return words + "."
    classes = found.counts.sum(axis=0)
    classes = classes[classes > 0]
    return (
        f"{words}, the largest class {classes.max() / classes.min():.3g} times those of the "
        "smallest. Distances are Jensen-Shannon distances between label distributions: 0 for equal "
        "distributions, 1 for no common class."
    )


def draw(directory: pathlib.Path, found: Statistics, title: str, num_unseen: int) -> list[str]:
    """Draws the plots of a partition; for data without classes, only that of the sizes.

    Args:
      directory: The directory of the plots; created if missing.
      found: The result of `data.statistics.measure`.
      title: The title of the plots.
      num_unseen: Number of held-out clients, which are the last ones.

    Returns:
      The names of the files: `SIZES`, and for data with classes `CLASSES` and `DISTANCES`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    plot_sizes(directory / SIZES, found, title)
    if not found.counts.size:
        return [SIZES]
    plot_classes(directory / CLASSES, found, title, num_unseen)
    plot_distances(directory / DISTANCES, found, title)
    return [CLASSES, SIZES, DISTANCES]


def plot_classes(path: pathlib.Path, found: Statistics, title: str, num_unseen: int) -> None:
    """Draws a bubble for each client and class; its area is the number of examples."""
    num_clients, num_classes = found.counts.shape
    number = min(num_clients, _MOST_IN_PICTURE)
    shown = np.arange(number) * num_clients // number
    height = max(1.6, min(5.0, 0.24 * num_classes))
    rows = min(-(-number // _MOST_IN_ROW), max(1, int(_TALLEST / (height + 0.35))))
    per_row = -(-number // rows)
    width = min(11.0, max(6.0, 0.3 * per_row))
    picture = figure.Figure(
        figsize=(width + 1.6, rows * (height + 0.35) + 0.9), layout="constrained"
    )
    all_axes = picture.subplots(rows, 1, squeeze=False)[:, 0]
    # Scaled so that all but the largest 2 % fit into their cells, and small ones remain visible.
    diameter = max(72 * min(width / per_row, height / num_classes), 5.0)
    scale = diameter**2 / np.percentile(found.counts[found.counts > 0], 98)
    for row, axes in enumerate(all_axes):
        columns = np.arange(row * per_row, min((row + 1) * per_row, number))
        client, label = np.nonzero(found.counts[shown[columns]])
        unseen = shown[columns[client]] >= num_clients - num_unseen
        axes.scatter(
            columns[client],
            label,
            s=scale * found.counts[shown[columns[client]], label],
            c=np.where(unseen, _UNSEEN, _SEEN),
            alpha=0.75,
            linewidths=0,
        )
        axes.set_xlim(row * per_row - 0.7, (row + 1) * per_row - 0.3)
        axes.set_ylim(-0.7, num_classes - 0.3)
        axes.yaxis.set_major_locator(_integers(int(height / 0.15)))
        axes.xaxis.set_major_locator(_integers(int(width / 0.28)))
        axes.xaxis.set_major_formatter(
            lambda column, _: str(shown[int(column)]) if 0 <= column < number else ""
        )
        axes.set_ylabel("class")
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[-1].set_xlabel("client")
    all_axes[0].set_title(plots.wrapped(title), **_TITLE)
    _add_bubble_legend(picture, all_axes[0], found.counts.max(), scale, num_unseen)
    picture.savefig(path, dpi=150)


def _add_bubble_legend(picture, axes, largest: int, scale: float, num_unseen: int) -> None:
    examples = sorted({_rounded(largest * share) for share in (1, 1 / 4, 1 / 16)}, reverse=True)
    handles = [
        axes.scatter([], [], s=scale * count, color=_SEEN, alpha=0.75, linewidths=0)
        for count in examples
    ]
    labels = [f"{count:,}" for count in examples]
    picture.legend(handles, labels, title="examples", loc="outside right upper", frameon=False)
    if num_unseen:
        kinds = [axes.scatter([], [], s=40, color=color) for color in (_SEEN, _UNSEEN)]
        picture.legend(
            kinds, ["trains", "unseen"], title="client", loc="outside right lower", frameon=False
        )


def _rounded(value: float) -> int:
    """Returns `value` rounded down to one significant digit, but at least 1."""
    if value < 1:
        return 1
    digit = 10 ** int(np.log10(value))
    return int(value // digit * digit)


def _integers(most: int) -> ticker.MaxNLocator:
    return ticker.MaxNLocator(max(most, 2), integer=True, steps=(1, 2, 5, 10))


def plot_sizes(path: pathlib.Path, found: Statistics, title: str) -> None:
    """Draws a histogram of client sizes: training, validation and test examples together."""
    totals = found.totals
    picture = figure.Figure(figsize=(7.5, 4.0), layout="constrained")
    axes = picture.subplots()
    low, high = int(totals.min()), int(totals.max())
    if high > 30 * max(low, 1):
        edges = np.unique(np.rint(np.geomspace(max(low, 1), high + 1, 25))) - 0.5
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    else:
        # Bins of equally many integers; unequal ones would show artefacts.
        bins = min(30, max(8, int(2 * len(totals) ** 0.5)))
        width = -(-(high - low + 1) // bins)
        edges = np.arange(low, high + width + 1, width) - 0.5
        axes.xaxis.set_major_locator(_integers(10))
    axes.hist(totals, edges, color=_SEEN, alpha=0.85, edgecolor="white", linewidth=0.6)
    median = np.median(totals)
    axes.axvline(median, color="black", linewidth=1.2, linestyle="--")
    axes.yaxis.set_major_locator(_integers(8))
    axes.set_xlabel("examples per client")
    axes.set_ylabel("clients")
    axes.set_title(plots.wrapped(f"{title}, median {median:,g} (dashed)"), **_TITLE)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=150)


def plot_distances(path: pathlib.Path, found: Statistics, title: str) -> None:
    """Draws the distances between clients, and of each to the pool, as colors."""
    number = len(found.compared)
    strip = max(1, number // 25)  # width of the column of the pool, in cells
    gap = max(1, strip // 2)
    cells = np.full((number, number + gap + strip), np.nan)
    cells[:, :number] = found.distances
    cells[:, -strip:] = found.to_pool[found.compared][:, np.newaxis]
    picture = figure.Figure(figsize=(7.8, 6.4), layout="constrained")
    axes = picture.subplots()
    image = axes.imshow(cells, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    pool = number + gap + (strip - 1) / 2
    if number <= 40:
        axes.set_xticks([*range(number), pool], [*found.compared, "pool"], rotation=90, fontsize=8)
        axes.set_yticks(range(number), found.compared, fontsize=8)
    else:
        axes.set_xticks([pool], ["pool"], rotation=90, fontsize=8)
        axes.set_yticks([])
    axes.set_xlabel(f"{number} clients, ordered by similarity")
    axes.set_ylabel("the same clients")
    axes.set_title(plots.wrapped(f"{title}, mean distance {found.mean_distance:.2f}"), **_TITLE)
    axes.spines[:].set_visible(False)
    label = "Jensen-Shannon distance of label distributions\n(0: the same, 1: no common class)"
    picture.colorbar(image, label=label, shrink=0.8)
    picture.savefig(path, dpi=150)
