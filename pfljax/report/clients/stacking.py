"""The scores of the clients of all runs, stacked over seeds, after checks that they fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pfljax.errors import UserError
from pfljax.report import finished
from pfljax.report.clients.types import Clients


def stack(
    runs: dict[str, list[finished.Run]], against: str, metrics: Sequence[str], unseen: bool
) -> Clients:
    """Returns the participating or held-out clients that have a score, stacked over seeds."""
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
        compared = one["unseen"] == unseen
        found = {}
        for method, of_method in runs.items():
            run, where = of_method[number], f"{method} with seed {of_method[number].result['seed']}"
            _require_same_clients(run.clients, one, names, where, against)
            found[method] = _values(run, metrics, where, names, unseen)[compared]
            differs = np.isfinite(found[method]) != np.isfinite(found[against])
            if differs.any():
                client = names[compared][differs.any(axis=1)][0]
                raise UserError(
                    f"Client {client} has a score in one of {where} and {against} only; choose "
                    "metrics that are defined for the same clients in all methods."
                )
        defined = np.isfinite(found[against]).all(axis=1)
        undefined += int(np.sum(~defined))
        own = names[compared][defined]
        keys.append(own if are_same else np.array([f"{number}/{name}" for name in own], dtype=str))
        seeds.append(np.full(defined.sum(), number))
        sizes.append(one["train_size"][compared][defined])
        for method, each in found.items():
            values[method].append(each[defined])
    return Clients(
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


def _values(
    run: finished.Run, metrics: Sequence[str], where: str, names: np.ndarray, unseen: bool
) -> np.ndarray:
    """Returns `[clients, metrics]`, the scores of a run; NaN for clients without a score.

    Raises:
      UserError: The run lacks a metric, or a client that should have a score has NaN.
    """
    columns, compared = [], run.clients["unseen"] == unseen
    prefix = "personal_test_"
    for name in metrics:
        if f"{prefix}{name}" not in run.clients:
            known = [key.removeprefix(prefix) for key in run.clients if key.startswith(prefix)]
            raise UserError(
                f"{where} has no metric {name!r}, only {', '.join(known)}; choose one of these as "
                "metrics, or add it to config.metrics and compare in another work directory."
            )
        values = run.clients[f"{prefix}{name}"]
        tested = compared & (run.clients["test_size"] > 0)
        # The number of clients for which the metric is defined, without held-out ones; older
        # results lack it.
        entry = {} if unseen else run.result.get("metrics", {}).get(name, {})
        missing = tested & ~np.isfinite(values)
        if np.sum(compared & np.isfinite(values)) < entry.get("clients", tested.sum()):
            raise UserError(
                f"{where} has a {name} that is not finite, among client "
                f"{', '.join(names[missing][:5])}; train it again, with a lower learning rate."
            )
        columns.append(values)
    return np.stack(columns, axis=1)
