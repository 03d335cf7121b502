"""Makes aggregators part of a method, so that the engine runs them as it runs the method.

    download       server state, and the aggregator's
    client_update  the method's, then `encode` on its `sum`
    server_update  `decode` or `combine` on the total, then the method's

Aggregators applied one after another encode in this order, and decode in the opposite one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pfljax.aggregation import messages
from pfljax.aggregation.messages import Public
from pfljax.aggregation.types import Aggregator, Kind, Total
from pfljax.core import (
    Algorithm,
    ClientData,
    ClientProfile,
    Context,
    Population,
    PyTree,
    streams,
    tree,
)
from pfljax.errors import UserError

# Kinds of aggregators that may come before one of a kind: what is sent must still be what a later
# one makes of it, a bound must hold for what is added up, and noise on a sum needs a sum.
BEFORE: dict[Kind, tuple[Kind, ...]] = {
    Kind.LOW_RANK: (),
    Kind.SPARSE: (),
    Kind.QUANTIZED: (Kind.SPARSE,),
    Kind.BOUNDED: (Kind.LOW_RANK, Kind.SPARSE, Kind.QUANTIZED),
    Kind.CHANNEL: (Kind.LOW_RANK, Kind.SPARSE, Kind.BOUNDED),
    Kind.ROBUST: (Kind.LOW_RANK, Kind.SPARSE, Kind.QUANTIZED),
}


class WithAggregation(NamedTuple):
    """The state of a method and that of an aggregator, at the server or of one client.

    Attributes:
      method: the method's, or what it downloads.
      aggregation: the aggregator's.
    """

    method: PyTree
    aggregation: PyTree


class Upload(NamedTuple):
    """What a client sends to be added up.

    Attributes:
      message: in the structure of the method's `ClientOutput.sum`.
      terms: the aggregator's, beside it.
    """

    message: PyTree
    terms: Public


class Seen(NamedTuple):
    """What a client sends of which the server sees every client's.

    Attributes:
      message: in the structure of the method's `ClientOutput.sum`.
      each: the method's `ClientOutput.each`.
    """

    message: PyTree
    each: PyTree


def shapes_of_upload(
    algorithm: Algorithm, population: Population, data: ClientData
) -> tuple[PyTree, PyTree]:
    """Returns shapes and dtypes of a client's `ClientOutput.sum` and `ClientOutput.each`.

    Args:
      algorithm: the method, which is traced and not run.
      population: shapes of the profiles of all clients.
      data: shapes of one client's training examples.
    """

    def one_update(population, data):
        key, client_id = jax.random.key(0), jnp.int32(0)
        profile = ClientProfile(client_id, data.size, data.class_counts)
        server = algorithm.init_server(population, key)
        client = algorithm.init_client(server, profile, key)
        context = Context(key, jnp.int32(0), jnp.int32(1), client_id, key)
        output = algorithm.update_client(server, client, data, context)
        return output.sum, output.each

    return jax.eval_shape(one_update, population, data)


def apply(algorithm: Algorithm, aggregator: Aggregator, message: PyTree = None) -> Algorithm:
    """Returns a method whose messages pass through an aggregator.

    Args:
      algorithm: the method. Functions of it that a derived method replaces must be replaced before.
      aggregator: applied after those that the method has already.
      message: shapes of `ClientOutput.sum`, from `shapes_of_upload`; an aggregator without state
        needs none.

    Returns:
      The method. Its states at server and clients are `WithAggregation` where the aggregator has a
      state there, and those of `algorithm` otherwise.

    Raises:
      UserError: the aggregator cannot follow one that the method has already, or the method has
        `prepare`, whose messages would bypass it.
      ValueError: the aggregator has a state, and there is no `message`.
    """
    require_order((*algorithm.aggregators, aggregator))
    if algorithm.prepare is not None:
        raise UserError(
            "config.aggregation.stages: the clients of this method send a second message, before "
            "their updates, which aggregators do not change; choose another method (mimelite in "
            "place of mime), or remove the stages."
        )
    stage = len(algorithm.aggregators)
    at_server, at_client = aggregator.init_server is not None, aggregator.init_client is not None
    if message is None and (at_server or at_client):
        raise ValueError(f"The aggregator {aggregator.name!r} has a state, and needs `message`.")

    def own(context: Context) -> Context:
        return context._replace(key=streams.key_of(context.key, streams.AGGREGATION, stage))

    def combine_states(has_state: bool, method: PyTree, state: PyTree) -> PyTree:
        return WithAggregation(method, state) if has_state else method

    def split_state(has_state: bool, state: PyTree) -> tuple[PyTree, PyTree]:
        return tuple(state) if has_state else (state, ())

    def of_method(server: PyTree) -> PyTree:
        return split_state(at_server, server)[0]

    def zero_message() -> messages.Message:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), message)
        return messages.of_client(zeros)

    def init_server(population, key):
        server = algorithm.init_server(population, key)
        state = aggregator.init_server(zero_message()) if at_server else ()
        return combine_states(at_server, server, state)

    def init_client(server, profile, key):
        client = algorithm.init_client(of_method(server), profile, key)
        state = aggregator.init_client(zero_message()) if at_client else ()
        return combine_states(at_client, client, state)

    def download(server, context):
        server, state = split_state(at_server, server)
        return combine_states(at_server, algorithm.download(server, context), state)

    def reply(server, message, context):
        return algorithm.reply(of_method(server), message, context)

    def client_update(received, client, data, context):
        received, server_state = split_state(at_server, received)
        client, client_state = split_state(at_client, client)
        sent_before = []  # messages in the middle of the update

        def reply(message):
            sent_before.append(message)
            return context.reply(message)

        inner = context if algorithm.reply is None else context._replace(reply=reply)
        output = algorithm.client_update(received, client, data, inner)
        size = output.size
        if size is None:
            size = messages.size(output.sum, output.each)
            more = 8 * tree.num_bytes_beside(sent_before, output.each)
            size = size._replace(other_bits=size.other_bits + more)
        sent, terms = output.sum, ()
        if aggregator.encode is not None:
            encoded = aggregator.encode(
                messages.of_client(sent), size, client_state, server_state, own(context)
            )
            sent, terms = messages.to_client(encoded.message, sent), encoded.terms
            size, client_state = encoded.size, encoded.state
            size = size._replace(other_bits=size.other_bits + 8 * tree.num_bytes(terms))
        output = output._replace(
            state=combine_states(at_client, output.state, client_state), size=size
        )
        if aggregator.sees_each_message:
            return output._replace(sum=(), each=Seen(sent, output.each))
        return output._replace(sum=Upload(sent, Public(terms)))

    def server_update(server, uploads, cohort, context):
        server, state = split_state(at_server, server)
        if aggregator.sees_each_message:
            stacked, each = uploads.each
            total, state = _combined(aggregator, stacked, cohort.ids >= 0, state, own(context))
        else:
            (total, public), each = uploads.total, uploads.each
            if aggregator.decode is not None:
                received = Total(messages.of_total(total), public.terms, cohort.count)
                message, state = aggregator.decode(received, state, own(context))
                total = messages.to_total(message, total)
        server = algorithm.server_update(
            server, uploads._replace(total=total, each=each), cohort, context
        )
        return combine_states(at_server, server, state)

    def personalize(server, client, data, context):
        return algorithm.personalize(
            of_method(server), split_state(at_client, client)[0], data, context
        )

    def global_params(server):
        return algorithm.global_params(of_method(server))

    def exchange(server, client, data, uploads, cohort, member, context):
        client, state = split_state(at_client, client)
        each = uploads.each.each if aggregator.sees_each_message else uploads.each
        moved = algorithm.exchange(
            of_method(server),
            client,
            data,
            uploads._replace(total=(), each=each),
            cohort,
            member,
            context,
        )
        return combine_states(at_client, moved, state)

    return algorithm._replace(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        global_params=algorithm.global_params and global_params,
        download=algorithm.download and download,
        reply=algorithm.reply and reply,
        exchange=algorithm.exchange and exchange,
        aggregators=(*algorithm.aggregators, aggregator),
    )


def _combined(
    aggregator: Aggregator, stacked: PyTree, present: jax.Array, state: PyTree, context: Context
) -> tuple[PyTree, PyTree]:
    """Returns what `combine` makes of the messages `[cohort, ...]`, in the form of their sum."""
    values, state = aggregator.combine(messages.of_client(stacked), present, state, context)
    # A message that is not finite must be detected, though a robust rule may leave it out.
    values = tree.where(
        tree.is_finite(stacked), values, jax.tree.map(lambda x: x * jnp.nan, values)
    )
    sums = jax.tree.map(lambda rows: jnp.sum(rows, axis=0, dtype=rows.dtype), stacked)
    count = jnp.sum(present)
    weights = messages.of_total(sums).weights
    scaled = tuple(
        messages.scale(value, count if weight is None else weight)
        for value, weight in zip(values, weights, strict=True)
    )
    return messages.to_total(messages.Message(scaled, weights), sums), state


def require_order(aggregators: Sequence[Aggregator], of_method: int = 0) -> None:
    """Raises a `UserError` for the first aggregator that cannot follow one before it.

    Args:
      aggregators: in the order in which clients apply them.
      of_method: number of the first of them that are part of the method.
    """
    for (number, earlier), (_, later) in itertools.combinations(enumerate(aggregators), 2):
        if earlier.kind not in BEFORE[later.kind]:
            what = "is part of the method" if number < of_method else "comes before it"
            raise UserError(
                f"config.aggregation.stages: {later.name!r} {later.kind.value} and cannot follow "
                f"{earlier.name!r}, which {what} and {earlier.kind.value}; leave it out, or change "
                "the order."
            )


def without_metrics(algorithm: Algorithm) -> Algorithm:
    """Returns a method whose clients report no training metrics."""

    def client_update(received, client, data, context):
        return algorithm.client_update(received, client, data, context)._replace(metrics={})

    return algorithm._replace(client_update=client_update)
