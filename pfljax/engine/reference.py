"""The same round as a plain Python loop over clients: the oracle of the tests, and pseudo-code."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core import streams, tree
from pfljax.core.algorithm import Algorithm
from pfljax.core.types import Cohort, Context, FederatedState, Uploads
from pfljax.engine import init, sampling
from pfljax.engine.examples import Examples
from pfljax.engine.round import client_context, cohort_key


def reference_round(
    algorithm: Algorithm,
    plan: sampling.CohortPlan,
    state: FederatedState,
    examples: Examples,
    num_rounds: int,
) -> FederatedState:
    """Runs one round, client after client, as the papers' pseudo-code does.

    Args:
      algorithm: the method.
      plan: how the cohort is chosen.
      state: `clients` is a list, one private state for each client; None for those that never took
        part.
      examples: of all clients.
      num_rounds: the planned length of the run.

    Returns:
      The next state.
    """
    length = jnp.int32(num_rounds)

    def context(stream, client_id):
        return client_context(state.key, state.round, length, stream, jnp.int32(client_id))

    ids = sampling.sample(plan, cohort_key(state.key, state.round))
    ids = [int(client_id) for client_id in ids if client_id >= 0]
    if not ids:
        return state._replace(round=state.round + 1)

    clients = list(state.clients)
    for i in ids:
        if clients[i] is None:
            profile = examples.profile(jnp.int32(i))
            clients[i] = init.init_client(algorithm, state.server, profile, state.key)

    update = jax.jit(algorithm.update_client)  # once for all clients: it is the loop that is plain
    outputs = [
        update(
            state.server, clients[i], examples.of_client(jnp.int32(i)), context(streams.UPDATE, i)
        )
        for i in ids
    ]
    total = outputs[0].sum
    for output in outputs[1:]:
        total = tree.add(total, output.sum)
    each = jax.tree.map(lambda *rows: jnp.stack(rows), *[output.each for output in outputs])
    uploads = Uploads(total, each)
    cohort = Cohort(jnp.array(ids), examples.sizes["train"][jnp.array(ids)], plan.num_clients)
    of_server = Context(streams.key_of(state.key, streams.SERVER, state.round), state.round, length)
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
