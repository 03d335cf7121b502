"""A comparison of scores of clients as text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pfljax.metrics import bootstrap
from pfljax.report import tables
from pfljax.report.clients.groups import SMALLEST_GROUP
from pfljax.report.clients.types import Clients, Comparison


def explain(
    clients: Clients,
    count: int,
    against: str,
    metrics: Sequence[str],
    forms: Sequence[tables.Form],
    members: dict[str, np.ndarray] | None,
    unseen: bool = False,
) -> list[str]:
    """Returns the sentences on the columns and the clients of a comparison."""
    seeds = len(np.unique(clients.seeds))
    title = forms[0].title + ("" if forms[0].more_is_better else " (lower is better)")
    which = "are held out" if unseen else "take part"
    notes = [
        f"Test {title} of the personalized models after the last round, over {count} clients that "
        f"{which} and {seeds} seed{'s' * (seeds > 1)}, each client with the same weight. mean, "
        "personalization bias (standard deviation over clients; of several metrics the root of the "
        "sum of their variances) and worst decile (mean over the 10 % of clients with the worst "
        f"scores): means over seeds. gain: over {against}, positive is better; its mean over "
        "clients with the 95 % interval of a paired bootstrap over clients "
        f"({bootstrap.RESAMPLES:,} resamples), "
        "which does not contain the variation between seeds. gaining: clients with a "
        "positive gain. rank correlation: Spearman's, of the gain of a client with its number of "
        "training examples."
    ]
    if not clients.are_same:
        notes.append(
            "Each seed has its own partition: the clients of different seeds count as different "
            "clients. If they are the same users, compare with --config.seeds_vary=training, as "
            "the intervals are too narrow otherwise."
        )
    if clients.undefined:
        notes.append(
            f"Clients without a score (no test examples, or too few for {', '.join(metrics)}) are "
            f"left out in all methods: {clients.undefined} over all seeds."
        )
    if members is not None:
        listed = ", ".join(f"{name} ({len(index)} clients)" for name, index in members.items())
        outside = count - sum(map(len, members.values()))
        notes.append(
            f"gap: between the best and the worst mean score of the groups {listed}; {outside} "
            f"clients are in no group or in one with fewer than {SMALLEST_GROUP}."
        )
    return notes


def markdown(found: Comparison) -> str:
    """Returns a comparison as a table in Markdown, with its notes below."""
    factor, unit, difference = (100, " (%)", " (points)") if found.percent[0] else (1, "", "")
    bias_factor, bias_unit = (100, " (%)") if found.percent[1] else (1, "")
    of_metrics = f" of {', '.join(found.metrics)}" if len(found.metrics) > 1 else ""

    def shown(value, factor=factor, sign=""):
        form = f"{sign}.2f" if factor == 100 else f"{sign}.4g"
        return "-" if np.isnan(value) else format(factor * value, form)

    titles = [
        *("method", f"mean{unit}", f"personalization bias{of_metrics}{bias_unit}"),
        *(f"worst decile{unit}", f"gain{difference}", "gaining (%)", "rank correlation"),
        *([f"gap{difference}"] * found.has_groups),
    ]
    lines = ["| " + " | ".join(titles) + " |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    for row in found.rows:
        low, high = (shown(end, sign="+") for end in (row.gain_low, row.gain_high))
        gain = shown(row.gain, sign="+")
        cells = [
            *(row.method, shown(row.mean), shown(row.personalization_bias, bias_factor)),
            *(shown(row.worst_decile), gain if gain == "-" else f"{gain} ({low} to {high})"),
            "-" if np.isnan(row.gaining) else f"{100 * row.gaining:.0f}",
            "-" if np.isnan(row.size_correlation) else f"{row.size_correlation:+.2f}",
            *([shown(row.group_gap)] * found.has_groups),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(line for note in found.notes for line in ("", note)), ""])
