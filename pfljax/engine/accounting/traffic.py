"""The upload and download of a client in a round, counted from shapes."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pfljax.core import tree
from pfljax.core.algorithm import Algorithm
from pfljax.core.types import Cohort, Context, Uploads
from pfljax.engine import used_arguments
from pfljax.engine.examples import Examples


class Traffic(NamedTuple):
    """Bytes of one client in one round.

    Attributes:
      upload: The bytes of the result of `prepare`, of `ClientOutput.sum` and `ClientOutput.each`,
        and of the messages that `reply` answers, from their shapes; if an aggregator sends less,
        the metric `upload_bytes` of a round contains the number.
      download: The bytes of those arrays of the download that `client_update` uses (without
        `Algorithm.download`, of the server's state), of the server's replies, and of those arrays
        of the client's state that `exchange` computes from other clients' uploads.
      upload_each: The bytes of `ClientOutput.each` and of the messages that `reply` answers, which
        the server receives individually; an array that is in several of them counts once.
    """

    upload: int
    download: int
    upload_each: int = 0


def count(algorithm: Algorithm, server: Any, client: Any, examples: Examples) -> Traffic:
    """Traces one client's update without running it, and counts its bytes.

    Args:
      algorithm: The method.
      server: The server's state, or its shapes.
      client: One client's state, or its shapes.
      examples: The examples of all clients, or their shapes.
    """
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (server, client, examples)
    )
    leaves, structure = jax.tree.flatten(shapes)
    return _count(algorithm, structure, tuple(leaves))


@functools.lru_cache(maxsize=16)  # for the seeds of a method
def _count(algorithm: Algorithm, structure: Any, leaves: tuple) -> Traffic:
    server, client, examples = jax.tree.unflatten(structure, leaves)
    key = jax.random.key(0)
    context = Context(key, jnp.int32(0), jnp.int32(1), jnp.int32(0), key)

    def prepare(server, examples):
        return algorithm.prepare_client(server, examples.of_client(jnp.int32(0)), context)

    prepared = jax.eval_shape(prepare, server, examples)

    messages, replies, sent = [], [], []  # in the middle of the update; bytes of the messages

    def update(received, client, examples, prepared, server):
        def reply(message):
            answer = algorithm.reply(server, message, context)
            messages.append(message)
            replies.append(answer)
            return answer

        of_cohort = context._replace(prepared=prepared, reply=reply)
        output = algorithm.client_update(
            received, client, examples.of_client(jnp.int32(0)), of_cohort
        )
        sent.append(tree.num_bytes_beside(messages, output.each))
        return output.sum, output.each

    received = server
    if algorithm.download is not None:
        received = jax.eval_shape(algorithm.download, server, context)
    program, (summed, seen) = jax.make_jaxpr(update, return_shape=True)(
        received, client, examples, prepared, server
    )
    read = used_arguments.of_program(program)
    download = sum(
        tree.num_bytes(leaf)
        for leaf, wanted in zip(jax.tree.leaves(received), read, strict=False)
        if wanted
    )
    if algorithm.exchange is not None:
        download += delivered(algorithm, server, client, summed, seen, examples)
    upload_each, both_ways = tree.num_bytes(seen) + sent[-1], tree.num_bytes(prepared)
    upload = tree.num_bytes(summed) + upload_each + both_ways
    return Traffic(upload, download + tree.num_bytes(replies) + both_ways, upload_each)


def delivered(
    algorithm: Algorithm, server: Any, client: Any, summed: Any, seen: Any, examples: Examples
) -> int:
    """Returns the bytes of a client's state that `exchange` changes, in a round of all clients."""
    clients = examples.num_participants
    each = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((clients, *leaf.shape), leaf.dtype), seen)
    key = jax.random.key(0)
    context = Context(key, jnp.int32(0), jnp.int32(1), jnp.int32(0), key)
    sizes = jnp.ones(clients, jnp.int32)  # Of a population on the host one client is known here.

    def exchange(client, server, total, each, examples):
        cohort = Cohort(jnp.arange(clients, dtype=jnp.int32), sizes, clients)
        data, uploads = examples.of_client(jnp.int32(0)), Uploads(total, each)
        return algorithm.exchange(server, client, data, uploads, cohort, jnp.int32(0), context)

    program = jax.make_jaxpr(exchange)(client, server, summed, each, examples).jaxpr
    kept = {id(variable) for variable in program.invars[: len(jax.tree.leaves(client))]}
    changed = [variable.aval for variable in program.outvars if id(variable) not in kept]
    return tree.num_bytes(changed)
