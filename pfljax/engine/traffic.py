"""What a client sends and receives in a round, counted from shapes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pfljax.core import tree
from pfljax.core.types import Algorithm, Context
from pfljax.engine.examples import Examples


class Traffic(NamedTuple):
    """Bytes of one client in one round.

    Attributes:
      upload: of `ClientOutput.sum` and `ClientOutput.each`.
      download: of those arrays of what the server sends that `client_update` reads; without
        `Algorithm.download` that is the server's state.
      upload_each: of `ClientOutput.each` alone, which the server sees client by client.
    """

    upload: int
    download: int
    upload_each: int = 0


def count(algorithm: Algorithm, server: Any, client: Any, examples: Examples) -> Traffic:
    """Traces one client's update, without running it, and counts.

    Args:
      algorithm: the method.
      server: the server state, or its shapes.
      client: one client's state, or its shapes.
      examples: of all clients.
    """
    context = Context(jax.random.key(0), jnp.int32(0), jnp.int32(1), jnp.int32(0))

    def update(received, client, client_id):
        output = algorithm.client_update(received, client, examples.of_client(client_id), context)
        return output.sum, output.each

    received = server
    if algorithm.download is not None:
        received = jax.eval_shape(algorithm.download, server, context)
    program, (summed, seen) = jax.make_jaxpr(update, return_shape=True)(
        received, client, jnp.int32(0)
    )
    read = {id(variable) for equation in program.jaxpr.eqns for variable in equation.invars}
    read.update(id(variable) for variable in program.jaxpr.outvars)
    leaves = jax.tree.leaves(received)
    arguments = program.jaxpr.invars[: len(leaves)]
    download = sum(
        tree.num_bytes(leaf)
        for leaf, variable in zip(leaves, arguments, strict=True)
        if id(variable) in read
    )
    upload_each = tree.num_bytes(seen)
    return Traffic(tree.num_bytes(summed) + upload_each, download, upload_each)
