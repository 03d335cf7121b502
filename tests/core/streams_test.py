"""Every use of randomness has a separate key."""

import itertools

import jax
import numpy as np

from pfljax.core import Context, streams
from pfljax.engine.init import init_client, init_server
from pfljax.engine.round import client_context, cohort_key

ROUNDS, CLIENTS, CHILDREN, STEPS = 4, 5, 4, 3


class Keys:
    """A method that only says with which keys it is started."""

    init_server = staticmethod(lambda population, key: key)
    init_client = staticmethod(lambda server, profile, key: key)


class Profile:
    def __init__(self, client_id):
        self.id = client_id


def keys_of_a_context(context: Context):
    """What local training and a method's children draw from, two levels deep."""
    for order in (streams.ORDER, streams.STEP, streams.AGGREGATION):
        yield from (streams.key_of(context.key, order, step) for step in range(STEPS))
    yield streams.key_of(context.key, streams.ARRIVAL)
    preparing = context._replace(key=streams.key_of(context.key, streams.PREPARE))
    yield preparing.key
    yield from (streams.key_of(preparing.key, streams.STEP, step) for step in range(STEPS))
    step = streams.key_of(context.key, streams.STEP, 0)
    yield from (streams.key_of(step, streams.DROPOUT, part) for part in range(2))
    for child in range(CHILDREN):
        yield context.child(child).key
        for order in (streams.ORDER, streams.STEP):
            yield streams.key_of(context.child(child).key, order, 0)
        yield from (context.child(child).child(inner).key for inner in range(2))


def test_no_two_uses_share_a_key():
    run = jax.random.key(0)
    keys = [init_server(Keys, None, run)]
    keys += [init_client(Keys, None, Profile(client), run) for client in range(CLIENTS)]
    keys += [cohort_key(run, round) for round in range(ROUNDS)]
    keys += [streams.key_of(run, streams.SERVER, round) for round in range(ROUNDS)]
    keys += [
        streams.key_of(run, streams.SERVER, round, streams.AGGREGATION, stage)
        for round in range(ROUNDS)
        for stage in range(STEPS)
    ]
    of_clients = itertools.product(
        (streams.UPDATE, streams.EXCHANGE, streams.EVALUATION), range(ROUNDS), range(CLIENTS)
    )
    for stream, round, client in of_clients:
        keys += keys_of_a_context(client_context(run, round, ROUNDS, stream, client))
    keys += [
        client_context(run, 0, ROUNDS, streams.UPDATE, client).client_key
        for client in range(CLIENTS)
    ]
    data = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}
    assert len(data) == len(keys) > 1000


def test_the_key_of_a_client_is_constant_and_differs_between_runs_and_clients():
    def own(seed, round, stream, client):
        key = client_context(jax.random.key(seed), round, 9, stream, client).client_key
        return tuple(np.asarray(jax.random.key_data(key)).tolist())

    first = own(0, 0, streams.UPDATE, 1)
    assert own(0, 3, streams.EVALUATION, 1) == first
    assert own(1, 0, streams.UPDATE, 1) != first
    assert own(0, 0, streams.UPDATE, 2) != first
