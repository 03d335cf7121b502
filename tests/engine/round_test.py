"""The round itself: cohorts, the two upload channels, exchange, and the form of the program."""

from typing import NamedTuple

import federation
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import core
from pfljax.core import streams
from pfljax.engine import mapping, sampling
from pfljax.engine.accounting.collectives import count
from pfljax.engine.clients.on_device import to_host
from pfljax.engine.programs import build_init, build_rounds
from pfljax.engine.reference import reference_round
from pfljax.engine.round import ALL_FINITE, SERVER_NOT_FINITE, cohort_key, run_rounds
from pfljax.errors import UserError


class Notes(NamedTuple):
    """The private state of `gossip`: what a client wrote down, of several dtypes."""

    mark: jax.Array  # [2] float32
    rounds_done: jax.Array  # [] int32
    flag: jax.Array  # [] bool
    key: jax.Array  # [] typed key


def gossip() -> core.Algorithm:
    """A method without a model: clients send their id through both channels, and exchange."""

    def client_update(server, client, data, context):
        row = data.size * jnp.ones(2)
        rounds_done = client.rounds_done + 1
        state = Notes(
            client.mark, rounds_done, ~client.flag, jax.random.fold_in(client.key, rounds_done)
        )
        return core.ClientOutput(
            state, sum=core.weighted({"size": row}, 1.0), each=row, metrics={"loss": row[0]}
        )

    def exchange(server, client, data, uploads, cohort, member, context):
        others = uploads.each.sum(axis=0) - uploads.each[member]
        batch = data.take(jnp.arange(data.max_size))
        labels = jnp.sum(batch.targets * batch.mask)
        return client._replace(mark=jnp.stack([others[0] + server, labels]))

    def init_client(server, profile, key):
        return Notes(jnp.zeros(2), jnp.int32(0), jnp.bool_(False), key)

    return core.Algorithm(
        init_server=lambda population, key: jnp.zeros(()),
        init_client=init_client,
        client_update=client_update,
        server_update=lambda server, uploads, cohort, context: (
            core.mean(uploads.total)["size"][0] + 0 * jnp.sum(cohort.sizes)
        ),
        personalize=lambda server, client, data, context: federation.task().init(jax.random.key(0)),
        exchange=exchange,
    )


def cohort_of_first_round(plan, examples):
    ids = np.asarray(sampling.sample(plan, cohort_key(jax.random.key(0), 0)))
    return ids[ids >= 0]


@pytest.mark.parametrize("devices, chunk", [(1, 1), (3, 1), (4, 2)])
def test_rows_of_every_dtype_travel_and_members_see_the_others_and_their_data(devices, chunk):
    outcome = federation.run(gossip(), devices=devices, chunk=chunk, rounds=1)
    ids = cohort_of_first_round(federation.PLAN, federation.examples())
    sizes = federation.SIZES[ids]
    assert len(set(ids)) == 5
    targets, ends = federation.examples().targets, np.cumsum(federation.SIZES)
    mean = sizes.mean()
    np.testing.assert_allclose(outcome.server, mean, rtol=1e-6)
    for client in range(9):
        if client in ids:
            others = sizes.sum() - federation.SIZES[client]
            own = targets[ends[client] - federation.SIZES[client] : ends[client]].sum()
            found = outcome.clients.mark[client]
            np.testing.assert_allclose(found, [others + mean, own], rtol=1e-6)
        else:
            np.testing.assert_array_equal(outcome.clients.mark[client], 0)
        assert outcome.clients.rounds_done[client] == (client in ids)
        assert outcome.clients.flag[client] == (client in ids)
    np.testing.assert_allclose(outcome.metrics["loss"], [mean], rtol=1e-6)
    assert outcome.metrics["examples"][0] == sizes.sum()


def test_exchange_equals_the_plain_loop():
    algorithm, count = gossip(), 9
    examples = jax.tree.map(jnp.asarray, federation.examples())
    state = build_init(algorithm, devices=jax.devices()[:1])(examples, jax.random.key(0))
    state = state._replace(clients=[None] * count)
    for _ in range(2):
        state = reference_round(algorithm, federation.PLAN, state, examples, 2)
    outcome = federation.run(algorithm, devices=2, rounds=2)
    seen = [i for i, client in enumerate(state.clients) if client is not None]
    assert 5 <= len(seen) < count
    marks = np.stack([state.clients[i].mark for i in seen])
    np.testing.assert_allclose(outcome.clients.mark[np.array(seen)], marks, rtol=1e-6)


@pytest.mark.parametrize("join", ["current", "initial"])
@pytest.mark.parametrize("devices, chunk", [(1, 1), (3, 2)])
def test_clients_are_initialized_from_the_servers_state_of_the_round_they_join(
    join, devices, chunk
):
    """A server that counts rounds; a client that keeps the count with which it began."""
    algorithm = core.Algorithm(
        init_server=lambda population, key: jnp.int32(0),
        init_client=lambda server, profile, key: (server, profile.id),
        client_update=lambda server, client, data, context: core.ClientOutput(state=client),
        server_update=lambda server, uploads, cohort, context: server + 1,
        personalize=lambda server, client, data, context: client,
    )
    used, rounds, key = jax.devices()[:devices], 4, jax.random.key(0)
    plan = sampling.CohortPlan(num_clients=8, size=2)
    placed = mapping.replicate(federation.examples(), used)
    step = build_rounds(
        algorithm, plan, clients_per_chunk=chunk, rounds_per_call=rounds, devices=used
    )
    state = build_init(algorithm, join=join, devices=used)(placed, key)
    state, _ = step(state, placed, np.int32(rounds), np.int32(rounds))
    began, ids = to_host(state, 9).clients
    first = np.zeros(9, int)
    for round in reversed(range(rounds)):
        first[np.asarray(sampling.sample(plan, cohort_key(key, round)))] = round
    assert first.max() > 0
    np.testing.assert_array_equal(began, first if join == "current" else 0)
    np.testing.assert_array_equal(ids, np.arange(9))
    assert np.asarray(state.joined).sum() == (9 if join == "initial" else np.sum(first > 0) + 2)


def test_a_state_that_is_not_finite_is_named():
    def algorithm(broken, where):
        def client_update(server, client, data, context):
            bad = jnp.where((context.client_id == broken) & (context.round == 1), jnp.nan, 0.0)
            return core.ClientOutput(
                state=client + (bad if where == "state" else 0),
                sum=core.weighted(jnp.float32(1) + (bad if where == "sum" else 0), 1.0),
                metrics={"loss": bad if where == "metrics" else jnp.float32(0)},
            )

        return core.Algorithm(
            init_server=lambda population, key: jnp.float32(0),
            init_client=lambda server, profile, key: jnp.float32(0),
            client_update=client_update,
            server_update=lambda server, uploads, cohort, context: jnp.where(
                (where == "server") & (context.round == 1), jnp.inf, server
            ),
            personalize=lambda server, client, data, context: client,
        )

    all_clients = sampling.CohortPlan(num_clients=8, size=8)
    for where in ("state", "sum", "metrics", "server", "nowhere"):
        found = federation.run(
            algorithm(5, where), plan=all_clients, devices=2, chunk=2, rounds=3
        ).metrics["not_finite"]
        not_a_client = {
            "nowhere": ALL_FINITE,
            "server": SERVER_NOT_FINITE,
            "sum": SERVER_NOT_FINITE,
        }
        culprit = not_a_client.get(where, 5)
        assert found[0] == ALL_FINITE and found[1] == culprit, where


def test_a_metric_named_as_one_of_the_engine_is_refused():
    average = federation.make("fedavg")

    def client_update(*args):
        output = average.client_update(*args)
        return output._replace(metrics={**output.metrics, "cohort": jnp.float32(0)})

    with pytest.raises(UserError, match="'cohort', which the engine reports itself"):
        federation.run(average._replace(client_update=client_update))


@pytest.mark.parametrize("name", ["scaffold", "ditto"])
def test_dropped_clients_and_empty_cohorts_leave_no_trace(name):
    everyone_fails = sampling.CohortPlan(num_clients=8, size=3, dropout=1 - 1e-9)
    outcome = federation.run(federation.make(name), plan=everyone_fails, devices=2, rounds=2)
    assert np.all(outcome.metrics["cohort"] == 0)
    fresh = build_init(federation.make(name), devices=jax.devices()[:2])(
        mapping.replicate(federation.examples(), jax.devices()[:2]), jax.random.key(0)
    )
    untouched = to_host(fresh, 9)
    federation.assert_close(outcome.server, untouched.server, tolerance=0)
    federation.assert_close(outcome.clients, untouched.clients, tolerance=0)


def test_unseen_clients_never_train_but_join_when_evaluated():
    all_clients = sampling.CohortPlan(num_clients=8, size=8)
    outcome = federation.run(federation.make("local"), plan=all_clients, rounds=4)
    start = federation.make("local").init_server(
        None, streams.key_of(jax.random.key(0), streams.SERVER_INIT)
    )
    federation.assert_close(jax.tree.map(lambda leaf: leaf[8], outcome.clients), start, tolerance=0)
    # One local update before it is scored: better than the model that it started from.
    logits = federation.task().predict(start, federation.examples().inputs[-6:])
    untouched = (np.argmax(logits, -1) == federation.examples().targets[-6:]).sum()
    loss = outcome.scores["personal"]["test"]["loss"][8]
    losses = -jax.nn.log_softmax(logits)[np.arange(6), federation.examples().targets[-6:]]
    assert loss < losses.sum()
    assert outcome.scores["personal"]["test"]["accuracy"][8] >= untouched


def test_the_pmap_form_equals_the_shard_map_form():
    algorithm = federation.make("ditto")
    placed = mapping.replicate(federation.examples())
    step = build_rounds(algorithm, federation.PLAN, clients_per_chunk=1, rounds_per_call=1)
    state = build_init(algorithm)(placed, jax.random.key(0))

    def body(state, examples):
        own = state._replace(clients=jax.tree.map(lambda leaf: leaf[0], state.clients))
        one = jnp.int32(1)
        after, _ = run_rounds(algorithm, federation.PLAN, 1, 1, own, examples, one, one)
        return after._replace(clients=jax.tree.map(lambda leaf: leaf[None], after.clients))

    spec = jax.tree.map(
        lambda axis: jax.P() if axis is None else jax.P(mapping.AXIS),
        mapping.STATE_AXES,
        is_leaf=lambda axis: axis is None,
    )
    mapped = jax.jit(
        jax.shard_map(
            body,
            mesh=mapping.local_mesh(),
            in_specs=(spec, jax.P()),
            out_specs=spec,
            check_vma=False,
        )
    )
    by_shard_map = to_host(mapped(state, placed), 9)
    by_pmap = to_host(step(state, placed, np.int32(1), np.int32(1))[0], 9)
    jax.tree.map(np.testing.assert_array_equal, by_shard_map, by_pmap)


@pytest.mark.parametrize("name", ["fedavg", "ditto", "fedrep"])
def test_no_client_model_is_gathered(name):
    """Private states go to one device, from one device, and only one sum goes to the server."""
    algorithm = federation.make(name)
    placed = mapping.replicate(federation.examples())
    state = build_init(algorithm)(placed, jax.random.key(0))
    step = build_rounds(algorithm, federation.PLAN, clients_per_chunk=1, rounds_per_call=1)
    text = step.compile(state, placed, np.int32(1), np.int32(1)).as_text()
    assert "all-gather" not in text
    assert "all-reduce" in text
    assert ("all-to-all" in text) == (name != "fedavg")


def communication(name, devices):
    """What a method's round sends where each device trains two clients."""
    used = jax.devices()[:devices]
    algorithm = federation.make(name)
    placed = mapping.replicate(federation.examples(), used)
    state = build_init(algorithm, devices=used)(placed, jax.random.key(0))
    plan = sampling.CohortPlan(num_clients=8, size=2 * devices)
    step = build_rounds(algorithm, plan, clients_per_chunk=1, rounds_per_call=3, devices=used)
    return count(step, state, placed, np.int32(3), np.int32(3))


def test_communication_per_device_grows_only_with_migrated_clients():
    model = 4 * (5 * 4 + 4 + 4 * 3 + 3)
    # The weight of the update, the loss and its weight, and the number of clients.
    head, scalars = 4 * (4 * 3 + 3), 4 * 4
    for devices in (2, 4):
        assert communication("fedavg", devices) == (model + scalars, 0, 0)
        rows = 2 * devices * head  # a client of each device, there and back
        assert communication("fedper", devices) == (model - head + scalars, 0, rows)
    assert communication("fedcac", 2).gathered >= 4 * model  # it compares clients


@pytest.mark.parametrize("devices, chunk", [(1, 1), (3, 2)])
def test_clients_of_a_cohort_are_ranked_by_their_ids_on_any_number_of_devices(devices, chunk):
    def ranked(context):
        return context.rank * jax.nn.one_hot(context.client_id, 9)

    algorithm = gossip()._replace(
        init_server=lambda population, key: jnp.zeros(9),
        download=lambda server, context: ranked(context),
        client_update=lambda received, client, data, context: core.ClientOutput(
            client, sum=received + ranked(context)
        ),
        server_update=lambda server, uploads, cohort, context: uploads.total,
        exchange=lambda server, client, data, uploads, cohort, member, context: client._replace(
            rounds_done=context.rank
        ),
    )
    outcome = federation.run(algorithm, devices=devices, chunk=chunk, rounds=1)
    ids = np.sort(cohort_of_first_round(federation.PLAN, federation.examples()))
    expected = np.zeros(9)
    expected[ids] = np.arange(len(ids))
    np.testing.assert_array_equal(outcome.server, 2 * expected)
    np.testing.assert_array_equal(outcome.clients.rounds_done[ids], expected[ids])
