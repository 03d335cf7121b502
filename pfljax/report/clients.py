"""Scores of clients across methods: spread, gain over a reference method, gaps between groups.

A client that takes part with several seeds counts once, with the mean of its scores over them. A
client is recognized by its name; without names by its number, if all seeds share one partition.
"""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pfljax import metrics as metrics_lib
from pfljax.errors import UserError
from pfljax.metrics import bootstrap
from pfljax.report import finished, tables
from pfljax.training.run import results
from pfljax.training.study import config as config_lib

SMALLEST_GROUP = 15
_GROUP = results.GROUP


class Row(NamedTuple):
    """The scores of a method across clients; NaN where a value is undefined.

    Attributes:
      method: The name of the method.
      mean: The mean over clients; like the next two, computed for each seed and then averaged.
      personalization_bias: The deviation over clients, as `metrics.personalization_bias` has it.
      worst_decile: The mean over the 10 % of clients with the worst scores.
      gain: The mean over clients of the gain over the reference method; positive is better.
      gain_low: The lower end of its 95 % interval, from a paired bootstrap over clients.
      gain_high: The upper end.
      gaining: The fraction of clients with a positive gain.
      size_correlation: Spearman's correlation of the gain with the number of training examples.
      group_gap: The difference between the best and the worst mean score of a group.
    """

    method: str
    mean: float
    personalization_bias: float
    worst_decile: float
    gain: float
    gain_low: float
    gain_high: float
    gaining: float
    size_correlation: float
    group_gap: float


class Comparison(NamedTuple):
    """The scores of clients in several methods.

    Attributes:
      rows: A row for each method, the reference method first.
      metrics: The names of the metrics; the first one is the score of all columns but the bias.
      percent: Whether the score, and whether all metrics, are shown in percent.
      has_groups: Whether the rows have a gap between groups.
      notes: Sentences on the clients, the columns, and what is left out.
    """

    rows: list[Row]
    metrics: Sequence[str]
    percent: tuple[bool, bool]
    has_groups: bool
    notes: list[str]


class _Clients(NamedTuple):
    """Clients with a score, stacked over seeds.

    Attributes:
      keys: `[n]`, the names by which clients are recognized across seeds.
      seeds: `[n]`, the index of the seed.
      sizes: `[n]`, the number of training examples.
      values: `{method: [n, metrics]}`.
      known: The names of all clients, those without a score and held-out ones included.
      are_same: Whether clients are recognized across seeds.
      undefined: Number of clients without a score, over all seeds.
    """

    keys: np.ndarray
    seeds: np.ndarray
    sizes: np.ndarray
    values: dict[str, np.ndarray]
    known: set[str]
    are_same: bool
    undefined: int


def read(directory: pathlib.Path, against: str) -> tuple[dict[str, list[finished.Run]], list[str]]:
    """Reads the finished runs of a comparison, with the seeds of the reference method.

    Args:
      directory: The work directory of `compare`, or with scenarios that of one of them. If the
        reference method is given as 'SUBDIRECTORY/METHOD', the directory of the work directories of
        several comparisons, which may have different models.
      against: The name of the reference method.

    Returns:
      The runs, `{method: [one run per seed]}`, the reference method first, and a sentence on each
      method or seed that is left out.

    Raises:
      UserError: The reference method has no finished run in the directory.
    """
    seeds: dict[str, set[int]] = {}
    several = "/" in against
    for path in sorted(directory.glob(f"{'*/' if several else ''}*/seed_*/result.json")):
        number = path.parent.name.removeprefix("seed_")
        if number.isdecimal():
            name = path.parent.parent.relative_to(directory).as_posix()
            seeds.setdefault(name, set()).add(int(number))
    if not seeds:
        raise UserError(
            f"The work directory {directory} has no finished runs; pass that of a comparison, and "
            "with scenarios the directory of one of them."
        )
    config_lib.require_known("reference method (against)", against, seeds)
    others = sorted(set().union(*seeds.values()) - seeds[against])
    wanted = sorted(seeds[against])
    if several:
        runs, notes = _read_several(directory, against, seeds)
    else:
        runs, notes = finished.collect(directory, [against], wanted)
    if others:
        some = ", ".join(map(str, others))
        notes = [*notes, f"Not used: seed {some}, with which {against} has no finished run."]
    return runs, notes


def _read_several(
    directory: pathlib.Path, against: str, seeds: Mapping[str, set[int]]
) -> tuple[dict[str, list[finished.Run]], list[str]]:
    """Reads the runs of several comparisons, as `read` does; `seeds` are those of each method."""

    def of(name):
        wanted = sorted(seeds[against])
        return [finished.read_run(directory / name / f"seed_{seed}") for seed in wanted]

    runs, notes = {against: of(against)}, []
    for name in sorted(seeds.keys() - {against}):
        if not seeds[name] >= seeds[against]:
            notes.append(f"{name} is not shown: some of the seeds are missing.")
            continue
        found = of(name)
        # Each model may need rounds of its own.
        differs = finished.first_difference(runs[against], found, ignored=("model", "rounds"))
        if differs:
            notes.append(f"{name} is not shown: its runs have {differs}.")
        else:
            runs[name] = found
    return runs, notes


def read_groups(path: pathlib.Path) -> dict[str, str]:
    """Reads the groups of clients, `{client: group}`, from a CSV file with these two columns.

    Raises:
      UserError: The file cannot be read, or has other columns, an empty cell, or a client twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The file of groups {path} cannot be read: {error}") from error
    columns = lines[0] if lines else []
    if sorted(columns) != ["client", "group"]:
        has = f"has the columns {', '.join(columns)}" if columns else "is empty"
        raise UserError(
            f"The file of groups {path} {has}; it needs exactly the columns client and group."
        )
    groups: dict[str, str] = {}
    for number, line in enumerate(lines[1:], 1):
        cells = dict(zip(columns, map(str.strip, line), strict=False))
        if len(line) != 2 or not all(cells.values()):
            raise UserError(f"Row {number} of {path} needs a client and a group; it is {line}.")
        if cells["client"] in groups:
            raise UserError(f"The client {cells['client']!r} is twice in {path}; keep one row.")
        groups[cells["client"]] = cells["group"]
    return groups


def recorded_groups(
    runs: dict[str, list[finished.Run]], against: str, attribute: str
) -> dict[str, str]:
    """Returns the groups of clients, `{client: group}`, that come with the data set of some runs.

    Args:
      runs: The runs, as `read` returns them.
      against: The name of the reference method, of whose runs the groups are taken.
      attribute: The attribute by which clients are grouped, such as 'gender'.

    Raises:
      UserError: The data set has no groups, or no such attribute.
    """
    groups: dict[str, str] = {}
    for run in runs[against]:
        known = [name.removeprefix(_GROUP) for name in run.clients if name.startswith(_GROUP)]
        if not known or "client_name" not in run.clients:
            raise UserError(
                "The data set of these runs has no groups of clients; pass a file of groups."
            )
        config_lib.require_known("attribute of clients (group)", attribute, known)
        pairs = zip(run.clients["client_name"], run.clients[f"{_GROUP}{attribute}"], strict=True)
        groups |= {str(client): str(group) for client, group in pairs if group}
    return groups


def compare(
    runs: dict[str, list[finished.Run]],
    against: str,
    *,
    metrics: Sequence[str] = (),
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Comparison:
    """Compares the scores of participating clients after the last round between methods.

    Args:
      runs: The runs, `{method: [one run per seed]}`, as `read` returns them.
      against: The name of the reference method.
      metrics: The metrics of which the personalization bias is computed, as that of a vector; the
        first one is the score of all other columns. By default the score of the runs alone.
      groups: The group of each client by its name, or by its number for clients without names.
      seed: The seed of the bootstrap.

    Raises:
      UserError: Runs do not have the same clients, a score is not finite, there are fewer than two
        clients, or the groups do not fit.
    """
    scored, notes = {}, []
    for method, seeds in sorted(runs.items(), key=lambda item: item[0] != against):
        bad = [str(run.result["seed"]) for run in seeds if run.diverged]
        if not bad:
            scored[method] = seeds
        elif method == against:
            raise UserError(f"{against} diverged with seed {bad[0]}; compare with another method.")
        else:
            notes.append(f"{method} is not shown: it diverged with seed {', '.join(bad)}.")
    metrics = tuple(dict.fromkeys(metrics)) or (tables.score_of(scored),)
    clients = _stack(scored, against, metrics)
    users, index = np.unique(clients.keys, return_inverse=True)
    if len(users) < 2:
        raise UserError(f"{len(users)} client has a score; a comparison needs two or more.")

    def per_client(values):
        return np.bincount(index, values) / np.bincount(index)

    forms = [tables.form_of(scored, name) for name in metrics]
    more = forms[0].more_is_better
    members = None if groups is None else _members(users, clients, groups)
    reference = clients.values[against][:, 0]
    # Equal gains that differ by the rounding of sums would count as gains and break ties of ranks.
    unit = 1e-12 * max(np.abs(of[:, 0]).max() for of in clients.values.values()) or 1.0
    rows = []
    for method, values in clients.values.items():
        gain = per_client((values[:, 0] - reference) * (1 if more else -1))
        gain = np.round(gain / unit) * unit
        rows.append(
            Row(
                method,
                *_spread(values, clients.seeds, more),
                *(
                    _gains(gain, per_client(clients.sizes), seed)
                    if method != against
                    else [np.nan] * 5
                ),
                _gap(per_client(values[:, 0]), members),
            )
        )
    percent = (forms[0].percent, all(form.percent for form in forms))
    notes = [*_explain(clients, len(users), against, metrics, forms, members), *notes]
    return Comparison(rows, metrics, percent, members is not None, notes)


def _stack(runs: dict[str, list[finished.Run]], against: str, metrics: Sequence[str]) -> _Clients:
    """Returns the clients that have a score, stacked over seeds, after checks of all runs."""
    references = [run.clients for run in runs[against]]
    named = all("client_name" in one for one in references)
    # Natural clients too are drawn and ordered by the seed of the data: numbers are no identity.
    data_seeds = {run.result.get("data_seed") for run in runs[against]}
    are_same = named or len(references) == 1 or (len(data_seeds) == 1 and None not in data_seeds)
    keys, seeds, sizes, known, undefined = [], [], [], set(), 0
    values: dict[str, list[np.ndarray]] = {method: [] for method in runs}
    for number, one in enumerate(references):
        names = one["client_name" if named else "client"].astype(str)
        known |= set(names)
        seen = ~one["unseen"]
        found = {}
        for method, of_method in runs.items():
            run, where = of_method[number], f"{method} with seed {of_method[number].result['seed']}"
            _require_same_clients(run.clients, one, names, where, against)
            found[method] = _values(run, metrics, where, names)[seen]
            differs = np.isfinite(found[method]) != np.isfinite(found[against])
            if differs.any():
                client = names[seen][differs.any(axis=1)][0]
                raise UserError(
                    f"Client {client} has a score in one of {where} and {against} only; choose "
                    "metrics that are defined for the same clients in all methods."
                )
        defined = np.isfinite(found[against]).all(axis=1)
        undefined += int(np.sum(~defined))
        own = names[seen][defined]
        keys.append(own if are_same else np.array([f"{number}/{name}" for name in own], dtype=str))
        seeds.append(np.full(defined.sum(), number))
        sizes.append(one["train_size"][seen][defined])
        for method, each in found.items():
            values[method].append(each[defined])
    return _Clients(
        np.concatenate(keys),
        np.concatenate(seeds),
        np.concatenate(sizes),
        {method: np.concatenate(each) for method, each in values.items()},
        known,
        are_same,
        undefined,
    )


def _require_same_clients(
    found: dict[str, np.ndarray],
    reference: dict[str, np.ndarray],
    names: np.ndarray,
    where: str,
    against: str,
) -> None:
    """Raises a `UserError` if a run has other clients than the run of the reference method."""
    if not np.array_equal(found["client"], reference["client"]):
        other = np.setxor1d(found["client"], reference["client"])
        which = f"client {other[0]} is in one of them only" if len(other) else "in another order"
        raise UserError(
            f"{where} has other clients than {against} ({which}); train both on the same data set."
        )
    for key in ("train_size", "test_size", "unseen", "client_name"):
        one, other = (arrays.get(key, np.zeros(len(names))) for arrays in (found, reference))
        if not np.array_equal(one, other):
            client = names[np.flatnonzero(one != other)[0]]
            raise UserError(
                f"{where} has another {key} of client {client} than {against}; train both on the "
                "same data set, partition and splits."
            )


def _values(run: finished.Run, metrics: Sequence[str], where: str, names: np.ndarray) -> np.ndarray:
    """Returns `[clients, metrics]`, the scores of a run; NaN for clients without a score.

    Raises:
      UserError: The run lacks a metric, or a client that should have a score has NaN.
    """
    columns, seen = [], ~run.clients["unseen"]
    prefix = "personal_test_"
    for name in metrics:
        if f"{prefix}{name}" not in run.clients:
            known = [key.removeprefix(prefix) for key in run.clients if key.startswith(prefix)]
            raise UserError(
                f"{where} has no metric {name!r}, only {', '.join(known)}; choose one of these as "
                "metrics, or add it to config.metrics and compare in another work directory."
            )
        values = run.clients[f"{prefix}{name}"]
        tested = seen & (run.clients["test_size"] > 0)
        # The number of clients for which the metric is defined; older results lack it.
        entry = run.result.get("metrics", {}).get(name, {})
        missing = tested & ~np.isfinite(values)
        if np.sum(seen & np.isfinite(values)) < entry.get("clients", tested.sum()):
            raise UserError(
                f"{where} has a {name} that is not finite, among client "
                f"{', '.join(names[missing][:5])}; train it again, with a lower learning rate."
            )
        columns.append(values)
    return np.stack(columns, axis=1)


def _members(
    users: np.ndarray, clients: _Clients, groups: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Returns `{group: indices of its clients}` of the groups that are large enough."""
    if not clients.are_same:
        raise UserError(
            "Groups need the same clients with all seeds, and each seed has its own partition; "
            "compare with --config.seeds_vary=training, or leave out groups."
        )
    unknown = [client for client in groups if client not in clients.known]
    if unknown:
        raise UserError(
            f"The groups have the client {unknown[0]!r}, which the runs do not have; remove it."
            f"{config_lib.suggest(unknown[0], sorted(clients.known))}"
        )
    of_users = np.array([groups.get(user, "") for user in users], dtype=str)
    counts = {name: int(np.sum(of_users == name)) for name in sorted(set(groups.values()))}
    large = [name for name, count in counts.items() if count >= SMALLEST_GROUP]
    if len(large) < 2:
        sizes = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise UserError(
            f"A gap needs two groups with {SMALLEST_GROUP} or more clients with a score; "
            f"{sizes or 'there is no group'}. Merge groups, or leave them out."
        )
    return {name: np.flatnonzero(of_users == name) for name in large}


def _spread(
    values: np.ndarray, seeds: np.ndarray, more_is_better: bool
) -> tuple[float, float, float]:
    """Returns mean, personalization bias and worst decile over clients, the means over seeds."""
    found = []
    for number in np.unique(seeds):
        own = values[seeds == number]
        summary = metrics_lib.summarize(own[:, 0], np.ones(len(own)), more_is_better=more_is_better)
        bias = metrics_lib.personalization_bias(own)
        found.append((summary.unweighted, bias, summary.worst_decile))
    return tuple(np.mean(found, axis=0).tolist())


def _gains(gain: np.ndarray, sizes: np.ndarray, seed: int) -> tuple[float, ...]:
    """Returns mean, interval, positive fraction and correlation with the sizes of some gains."""
    from scipy import stats  # takes a third of a second

    # The same seed, and so the same resampled clients, for all methods.
    low, high = bootstrap.interval_of_mean(gain, seed)
    constant = np.ptp(gain) == 0 or np.ptp(sizes) == 0
    correlation = np.nan if constant else stats.spearmanr(gain, sizes).statistic
    of_all = (gain.mean(), low, high, np.mean(gain > 0), correlation)
    return tuple(map(float, of_all))


def _gap(scores: np.ndarray, members: dict[str, np.ndarray] | None) -> float:
    means = [scores[index].mean() for index in (members or {}).values()]
    return float(np.ptp(means)) if means else np.nan


def _explain(
    clients: _Clients,
    count: int,
    against: str,
    metrics: Sequence[str],
    forms: Sequence[tables.Form],
    members: dict[str, np.ndarray] | None,
) -> list[str]:
    """Returns the sentences on the columns and the clients of a comparison."""
    seeds = len(np.unique(clients.seeds))
    title = forms[0].title + ("" if forms[0].more_is_better else " (lower is better)")
    notes = [
        f"Test {title} of the personalized models after the last round, over {count} clients that "
        f"take part and {seeds} seed{'s' * (seeds > 1)}, each client with the same weight. mean, "
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
