"""The table of random streams: the key of each use of randomness.

Every key is derived from the key of the run with `fold_in`, along one path of this table, so that
no two uses share a key. The numbers of a row are folded in from left to right, and those of an
indented row after those of the row above.

    run key
      SERVER_INIT                 the server's initial state
      CLIENT_INIT   client        a client's initial state
      CLIENT        client        `Context.client_key`, the same in every round
      COHORT        round         which clients take part
      SERVER        round         `Context.key` of `server_update`
      UPDATE        round client  `Context.key` of `download` and `client_update`
      EXCHANGE      round client  `Context.key` of `exchange`
      EVALUATION    round client  the context of an evaluation, with
        0                         adaptation of held-out clients
        1                         `Context.key` of `personalize`
        2, 3        batch         predictions on test and validation examples
    Context.key
      0, 1, 2 ...                 `Context.child`, a method's own uses
      ORDER         epoch         the order of a client's examples
      STEP          step          a step of local training
      AGGREGATION   stage         an aggregator, on the client or at the server
      PREPARE                     `Context.key` of `prepare`
      ARRIVAL                     when in a round a delayed client arrives
    Context.client_key
      SPEED                       how long a delayed client trains
    key of a step
      DROPOUT       0, 1          dropout in the body and in the head of a network
"""

from __future__ import annotations

import jax

# The first number below the key of the run.
SERVER_INIT, CLIENT_INIT, CLIENT, COHORT, SERVER, UPDATE, EXCHANGE, EVALUATION = range(8)

# Numbers below the key of a context or of a step that no method uses for `Context.child`.
ORDER, STEP, AGGREGATION, DROPOUT = 2**32 - 1, 2**32 - 2, 2**32 - 3, 2**32 - 4
PREPARE, ARRIVAL, SPEED = 2**32 - 5, 2**32 - 6, 2**32 - 7


def key_of(key: jax.Array, *path: jax.Array | int) -> jax.Array:
    """Returns the key at a path of the table.

    Args:
      key: Typed PRNG key of the run, or of a context.
      *path: `[]` numbers from 0 to `2**32 - 1`, folded in one after another.

    Example:
      >>> run = jax.random.key(0)
      >>> bool(key_of(run, SERVER, 3) == key_of(run, CLIENT_INIT, 3))
      False
    """
    for number in path:
        key = jax.random.fold_in(key, number)
    return key
