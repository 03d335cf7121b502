"""What an aggregator is: what happens to a message between the client's `sum` and the server.

An aggregator is a tuple of pure functions, of which `encode` is written for ONE client, as a method
is; `aggregation.apply` makes it part of a method. Shapes in the docstrings: `C` classes, `[]` a
scalar.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

import jax

from pfljax.aggregation.messages import Message, Size
from pfljax.core import PyTree


class Kind(enum.Enum):
    """What an aggregator does to a message, by which `chain` decides what may follow what."""

    LOW_RANK = "sends factors of matrices"
    SPARSE = "sends some entries only"
    QUANTIZED = "sends entries with few bits"
    BOUNDED = "bounds what one client adds to the sum"
    CHANNEL = "adds messages up on the channel"
    ROBUST = "sees each message"


class Encoded(NamedTuple):
    """What an aggregator makes of one client's message.

    Attributes:
      message: in the structure, shapes and dtypes of the client's message.
      size: bits of this message.
      state: the client's next state of the aggregator.
      terms: scalars that are added up over the cohort beside the messages, without any protection.
    """

    message: Message
    size: Size
    state: PyTree = ()
    terms: PyTree = ()


class Total(NamedTuple):
    """What the server receives of a cohort.

    Attributes:
      message: the sums of the clients' weighted values, and of their weights.
      terms: the sum of their `Encoded.terms`.
      count: `[]` int32, number of clients in the cohort.
    """

    message: Message
    terms: PyTree
    count: jax.Array


class Aggregator(NamedTuple):
    """One stage between `ClientOutput.sum` and `server_update`.

    State keeps its structure, shapes and dtypes. Padding clients and rounds without a client change
    no state; the engine and `aggregation.apply` see to that.

    Attributes:
      name: the name in `AGGREGATORS` and in configs.
      kind: what it does to a message.
      encode: `(Message, Size, client state, server state, Context) -> Encoded`, on the client
        before the sum; None leaves messages as they are.
      decode: `(Total, server state, Context) -> (Message, server state)`, on the server after the
        sum; None leaves the total as it is.
      combine: `(Message, present, server state, Context) -> (values, server state)`: takes the
        messages of all clients, stacked `[cohort, ...]`, with `present` `[cohort]` bool, and
        returns a replacement of the mean of their values. The server then sees each message, and
        secure aggregation is impossible. None where the sum suffices.
      init_client: `Message -> client state`, from a message of zeros; None for no state.
      init_server: `Message -> server state`, likewise. Clients receive it with the download.
    """

    name: str
    kind: Kind
    encode: Callable[..., Encoded] | None = None
    decode: Callable[..., tuple[Message, PyTree]] | None = None
    combine: Callable[..., tuple[PyTree, PyTree]] | None = None
    init_client: Callable[[Message], PyTree] | None = None
    init_server: Callable[[Message], PyTree] | None = None

    @property
    def sees_each_message(self) -> bool:
        """Whether the server must see each client's message, not only the sum."""
        return self.combine is not None
