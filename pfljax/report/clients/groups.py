"""Groups of clients, between which scores have gaps."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Mapping

import numpy as np

from pfljax.errors import UserError
from pfljax.report import finished
from pfljax.report.clients.types import Clients
from pfljax.training.run.results import GROUP
from pfljax.training.study import config_values

SMALLEST_GROUP = 15


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
        known = [name.removeprefix(GROUP) for name in run.clients if name.startswith(GROUP)]
        if not known or "client_name" not in run.clients:
            raise UserError(
                "The data set of these runs has no groups of clients; pass a file of groups."
            )
        config_values.require_known("attribute of clients (group)", attribute, known)
        pairs = zip(run.clients["client_name"], run.clients[f"{GROUP}{attribute}"], strict=True)
        groups |= {str(client): str(group) for client, group in pairs if group}
    return groups


def members_of(
    users: np.ndarray, clients: Clients, groups: Mapping[str, str]
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
            f"{config_values.suggest(unknown[0], sorted(clients.known))}"
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
