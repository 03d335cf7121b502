"""Which of its arguments a traced function reads, and whether a method reads the planned length."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pfljax.core.algorithm import Algorithm
from pfljax.core.types import Cohort, Context, PyTree, Uploads
from pfljax.engine import init
from pfljax.engine.examples import Examples


def of_program(program: Any) -> list[bool]:
    """Returns for each flat argument of a program whether it reads it or returns it.

    Args:
      program: what `jax.make_jaxpr(function)(*args)` returned.

    Example:
      >>> import jax
      >>> of_program(jax.make_jaxpr(lambda a, b, c: (a + 1, c))(1, 2, 3))
      [True, False, True]
    """
    jaxpr = program.jaxpr
    read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    read.update(id(variable) for variable in jaxpr.outvars)
    return [id(variable) in read for variable in jaxpr.invars]


def uses_planned_length(algorithm: Algorithm, server: PyTree, examples: Examples) -> bool:
    """Returns whether a method's rounds or its personal models depend on `Context.num_rounds`.

    Args:
      algorithm: the method.
      server: the server's state, or its shapes.
      examples: of at least one client.
    """

    def one_of_each(num_rounds, server, examples):
        key, client_id = jax.random.key(0), jnp.int32(0)
        context = Context(key, jnp.int32(0), num_rounds, client_id, key)
        client = init.init_client(algorithm, server, examples.profile(client_id), key)
        data = examples.of_client(client_id)
        output = algorithm.update_client(server, client, data, context)
        uploads = Uploads(output.sum, jax.tree.map(lambda leaf: leaf[None], output.each))
        cohort = Cohort(client_id[None], data.size[None], examples.num_participants)
        after = algorithm.server_update(server, uploads, cohort, context._replace(client_id=-1))
        moved = output.state
        if algorithm.exchange is not None:
            moved = algorithm.exchange(after, moved, data, uploads, cohort, client_id, context)
        return after, moved, algorithm.personalize(after, moved, data, context)

    return of_program(jax.make_jaxpr(one_of_each)(jnp.int32(1), server, examples))[0]
