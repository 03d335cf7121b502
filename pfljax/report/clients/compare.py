"""The comparison of scores of clients between methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pfljax import metrics as metrics_lib
from pfljax.errors import UserError
from pfljax.metrics import bootstrap
from pfljax.report import finished, tables
from pfljax.report.clients.groups import members_of
from pfljax.report.clients.stacking import stack
from pfljax.report.clients.text import explain
from pfljax.report.clients.types import Comparison, Row


def compare(
    runs: dict[str, list[finished.Run]],
    against: str,
    *,
    metrics: Sequence[str] = (),
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
    unseen: bool = False,
) -> Comparison:
    """Compares the scores of clients after the last round between methods.

    Args:
      runs: The runs, `{method: [one run per seed]}`, as `read` returns them.
      against: The name of the reference method.
      metrics: The metrics of which the personalization bias is computed, as that of a vector; the
        first one is the score of all other columns. By default the score of the runs alone.
      groups: The group of each client by its name, or by its number for clients without names.
      seed: The seed of the bootstrap.
      unseen: Whether the compared clients are those held out from training; otherwise those that
        take part.

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
    clients = stack(scored, against, metrics, unseen)
    users, index = np.unique(clients.keys, return_inverse=True)
    if len(users) < 2:
        which = "held-out client has" if unseen else "client has"
        hint = ": raise config.data.unseen_fraction" if unseen else ""
        raise UserError(f"{len(users)} {which} a score; a comparison needs two or more{hint}.")

    def per_client(values):
        return np.bincount(index, values) / np.bincount(index)

    forms = [tables.form_of(scored, name) for name in metrics]
    more = forms[0].more_is_better
    members = None if groups is None else members_of(users, clients, groups)
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
    notes = [*explain(clients, len(users), against, metrics, forms, members, unseen), *notes]
    return Comparison(rows, metrics, percent, members is not None, notes)


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
