"""The same round as a plain Python loop over clients: the reference for tests, and pseudo-code."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pfljax.core import streams, tree
from pfljax.core.algorithm import Algorithm
from pfljax.core.types import Cohort, Context, FederatedState, Uploads
from pfljax.engine import init, sampling
from pfljax.engine.examples import Examples
from pfljax.engine.round import client_context, cohort_key


@functools.lru_cache(maxsize=4)
def _compiled(algorithm: Algorithm, num_clients: int) -> Algorithm:
    """Returns a method whose functions are compiled once for all clients and rounds.

    Args:
      algorithm: The method.
      num_clients: Number of clients in the population, which is static in a `Cohort`.
    """

    def cohort_of(ids, sizes):
        return Cohort(ids, sizes, num_clients)

    @jax.jit
    def server_update(server, uploads, ids, sizes, context):
        return algorithm.server_update(server, uploads, cohort_of(ids, sizes), context)

    def prepare(server, data, context):
        received = server if algorithm.download is None else algorithm.download(server, context)
        return algorithm.prepare(received, data, context)

    @jax.jit
    def exchange(server, client, data, uploads, ids, sizes, member, context):
        cohort = cohort_of(ids, sizes)
        return algorithm.exchange(server, client, data, uploads, cohort, member, context)

    return algorithm._replace(
        init_client=jax.jit(algorithm.init_client),
        client_update=jax.jit(algorithm.update_client),
        server_update=lambda server, uploads, cohort, context: server_update(
            server, uploads, cohort.ids, cohort.sizes, context
        ),
        prepare=algorithm.prepare and jax.jit(prepare),
        download=None,  # part of the compiled `client_update`, and of `prepare`
        reply=None,  # likewise
        exchange=algorithm.exchange
        and (
            lambda server, client, data, uploads, cohort, member, context: exchange(
                server, client, data, uploads, cohort.ids, cohort.sizes, member, context
            )
        ),
    )


def reference_round(
    algorithm: Algorithm,
    plan: sampling.CohortPlan,
    state: FederatedState,
    examples: Examples,
    num_rounds: int,
) -> FederatedState:
    """Runs one round, client after client, like the pseudo-code of a paper.

    Args:
      algorithm: The method.
      plan: The parameters of cohort sampling.
      state: The state; `clients` is a list of private states, None for clients that never took
        part.
      examples: The examples of all clients.
      num_rounds: The planned length of the run.

    Returns:
      The next state.
    """
    algorithm = _compiled(algorithm, plan.num_clients)  # the loop is plain Python
    length = jnp.int32(num_rounds)

    ids = sampling.sample(plan, cohort_key(state.key, state.round))
    ids = [int(client_id) for client_id in ids if client_id >= 0]
    if not ids:
        return state._replace(round=state.round + 1)

    cohort = Cohort(jnp.array(ids), examples.sizes["train"][jnp.array(ids)], plan.num_clients)

    def context(stream, client_id):
        own = jnp.int32(client_id)
        rank = cohort.rank(own)
        return client_context(state.key, state.round, length, stream, own, rank)

    clients = list(state.clients)
    for i in ids:
        if clients[i] is None:
            profile = examples.profile(jnp.int32(i))
            clients[i] = init.init_client(algorithm, state.server, profile, state.key)

    terms = [
        algorithm.prepare_client(
            state.server, examples.of_client(jnp.int32(i)), context(streams.UPDATE, i)
        )
        for i in ids
    ]
    prepared = functools.reduce(tree.add, terms)
    outputs = [
        algorithm.update_client(
            state.server,
            clients[i],
            examples.of_client(jnp.int32(i)),
            context(streams.UPDATE, i)._replace(prepared=prepared),
        )
        for i in ids
    ]
    total = outputs[0].sum
    for output in outputs[1:]:
        total = tree.add(total, output.sum)
    each = jax.tree.map(lambda *rows: jnp.stack(rows), *[output.each for output in outputs])
    uploads = Uploads(total, each)
    server_key = streams.key_of(state.key, streams.SERVER, state.round)
    of_server = Context(server_key, state.round, length, prepared=prepared)
    server = algorithm.server_update(state.server, uploads, cohort, of_server)

    for member, (i, output) in enumerate(zip(ids, outputs, strict=True)):
        clients[i] = output.state
        if algorithm.exchange is not None:
            clients[i] = algorithm.exchange(
                server,
                output.state,
                examples.of_client(jnp.int32(i)),
                uploads,
                cohort,
                jnp.int32(member),
                context(streams.EXCHANGE, i),
            )
    return FederatedState(server, clients, state.round + 1, state.key)
