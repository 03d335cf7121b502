"""Which arguments a traced function uses, such as a method's context and data."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from pfljax.core.algorithm import Algorithm
from pfljax.core.client_data import ClientData
from pfljax.core.types import ClientProfile, Cohort, Context, Population, PyTree, Uploads
from pfljax.engine import init
from pfljax.engine.examples import Examples


def of_program(program: Any) -> list[bool]:
    """Returns for each flat argument of a program whether it is used or returned.

    Args:
      program: The result of `jax.make_jaxpr(function)(*args)`.

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
    """Returns whether a method's rounds or personalized models depend on `Context.num_rounds`.

    Args:
      algorithm: The method.
      server: The server's state, or its shapes.
      examples: The examples of at least one client.
    """

    def run(num_rounds, server, examples):
        data = examples.of_client(jnp.int32(0))
        return _one_round(algorithm, num_rounds, server, data, examples.num_participants)[:2]

    return of_program(jax.make_jaxpr(run)(jnp.int32(1), server, examples))[0]


def uses_class_counts(algorithm: Algorithm, population: Population, data: ClientData) -> bool:
    """Returns whether a method uses the number of examples of each class of the clients.

    Args:
      algorithm: The method.
      population: Shapes and dtypes of the profiles of all clients, class counts included.
      data: Shapes and dtypes of a client's examples, class counts included.

    Raises:
      UserError: The method refuses the network or the data.
    """

    def run(counts_of_all, counts, sizes, data, key):
        server = init.init_server(algorithm, Population(sizes, counts_of_all), key)
        own = dataclasses.replace(data, class_counts=counts)
        found = _one_round(algorithm, jnp.int32(1), server, own, population.num_clients)
        return server, found[:2]

    counts = population.class_counts, data.class_counts
    others = population.sizes, dataclasses.replace(data, class_counts=None)
    key = jax.eval_shape(jax.random.key, 0)
    return any(of_program(jax.make_jaxpr(run)(*counts, *others, key))[:2])


def messages_and_changes(
    algorithm: Algorithm, population: Population, data: ClientData
) -> tuple[PyTree, PyTree, list[bool]]:
    """Traces one round, and returns what clients send and what the server's update changes.

    Args:
      algorithm: The method.
      population: The profiles of all clients, or their shapes.
      data: A client's examples, or their shapes.

    Returns:
      The shapes of a client's messages (the result of `prepare`, `ClientOutput.sum` and `each`, and
      the metrics); those of the server's state; and for each of its leaves, whether the update
      changes it.
    """
    population, data = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (population, data)
    )
    key = jax.eval_shape(jax.random.key, 0)
    server = jax.eval_shape(functools.partial(init.init_server, algorithm), population, key)

    def run(server, data):
        after, _, messages = _one_round(
            algorithm, jnp.int32(1), server, data, population.num_clients
        )
        return after, messages

    program, (_, messages) = jax.make_jaxpr(run, return_shape=True)(server, data)
    count = len(jax.tree.leaves(server))
    before, after = program.jaxpr.invars[:count], program.jaxpr.outvars[:count]
    return messages, server, [one is not other for one, other in zip(after, before, strict=True)]


def _one_round(
    algorithm: Algorithm,
    num_rounds: jax.Array,
    server: PyTree,
    data: ClientData,
    num_participants: int,
) -> tuple[PyTree, PyTree, PyTree]:
    """Calls each function of a method for a round with client 0 as the cohort.

    Returns:
      The next state of the server, that of the client with its personalized model, and the messages
      of the client.
    """
    key, client_id = jax.random.key(0), jnp.int32(0)
    context = Context(key, jnp.int32(0), num_rounds, client_id, key)
    profile = ClientProfile(client_id, data.size, data.class_counts)
    client = init.init_client(algorithm, server, profile, key)
    context = context._replace(prepared=algorithm.prepare_client(server, data, context))
    output = algorithm.update_client(server, client, data, context)
    uploads = Uploads(output.sum, jax.tree.map(lambda leaf: leaf[None], output.each))
    cohort = Cohort(client_id[None], data.size[None], num_participants)
    after = algorithm.server_update(server, uploads, cohort, context._replace(client_id=-1))
    state = output.state
    if algorithm.exchange is not None:
        state = algorithm.exchange(after, state, data, uploads, cohort, client_id, context)
    messages = context.prepared, output.sum, output.each, output.metrics
    return after, (state, algorithm.personalize(after, state, data, context)), messages
