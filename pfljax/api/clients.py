"""Scores of clients across the methods of a comparison."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pfljax.report import clients

if TYPE_CHECKING:
    import pandas as pd


def compare_clients(
    directory: str | pathlib.Path,
    /,
    *,
    against: str = "fedavg",
    metrics: Sequence[str] = (),
    groups: Mapping[str | int, str] | str | pathlib.Path | None = None,
    seed: int = 0,
    unseen: bool = False,
) -> pd.DataFrame:
    """Compares the scores of the clients of finished runs between methods; trains nothing.

    Args:
      directory: The work directory of a comparison; with scenarios, that of one of them.
      against: The reference method, over which gains are computed.
      metrics: The metrics of which the personalization bias is computed, as that of a vector; the
        first one is the score of all other columns. By default the score of the runs alone.
      groups: The group of each client by its name, or by its number for clients without names; or
        a CSV file with the columns `client` and `group`. None for no groups.
      seed: The seed of the bootstrap.
      unseen: Whether the compared clients are those held out from training; otherwise those that
        take part.

    Returns:
      A row for each method, with the columns of `pfljax.report.clients.Row`; its `attrs["notes"]`
      are sentences on the columns and on what is left out.

    Raises:
      UserError: Runs do not have the same clients, a score is not finite, there are fewer than two
        clients, or the groups do not fit.

    Example:
      >>> import pfljax
      >>> found = pfljax.compare(["fedavg", "local"], "digits", seeds=(0,), rounds=2)
      >>> frame = pfljax.compare_clients(found.directory, against="fedavg")
      >>> frame.index.tolist(), frame.columns[:3].tolist()
      (['fedavg', 'local'], ['mean', 'personalization_bias', 'worst_decile'])
    """
    import pandas as pd

    if isinstance(groups, (str, pathlib.Path)):
        groups = clients.read_groups(pathlib.Path(groups))
    elif groups is not None:
        groups = {str(client): group for client, group in groups.items()}
    runs, omitted = clients.read(pathlib.Path(directory), against)
    found = clients.compare(runs, against, metrics=metrics, groups=groups, seed=seed, unseen=unseen)
    frame = pd.DataFrame(found.rows).set_index("method")
    frame.attrs["notes"] = [*found.notes, *omitted]
    return frame
