"""A table that replaces the virtual clock of delayed clients, for tests with given delays."""

import jax.numpy as jnp
import numpy as np

from pfljax.ops import staleness

# How many versions an update is late that arrives in a round (row) from a client (column).
TABLE = np.array([[0, 0, 0, 0], [1, 0, 1, 0], [2, 1, 0, 1], [1, 3, 0, 2]])


def follow(monkeypatch, table=TABLE):
    """Replaces the clock of the methods that a test makes by a table `[rounds, clients]`."""
    rows = jnp.asarray(table, jnp.int32)
    monkeypatch.setattr(
        staleness, "clock", lambda delay: lambda context: rows[context.round, context.client_id]
    )
