"""Aggregators inside the engine's rounds: the plain loop, devices, padding, empty cohorts, NaN."""

import functools

import cohorts
import federation
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import aggregation, core
from pfljax.aggregation import messages
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import mapping, sampling
from pfljax.engine.clients.on_device import to_host
from pfljax.engine.programs import build_init
from pfljax.engine.reference import reference_round
from pfljax.engine.round import ALL_FINITE, SERVER_NOT_FINITE
from pfljax.errors import UserError

# Together they have a state at clients and at the server, terms, randomness on both sides.
CHAIN = (
    aggregation.top_k(fraction=0.4),
    aggregation.quantize(bits=4),
    aggregation.adaptive_clip(bound=0.3, noise_multiplier=0.1, count_noise=0.2),
)
CHANNEL = aggregation.over_the_air(fading=True, gain_threshold=0.2)
WITHOUT_A_SUM = (
    *("local", "fedfomo", "apple", "pfedhn", "fedamp", "fedcross"),
    *("feddf", "cfl", "fedgh", "fedpcl", "self_fl", "pfedpg"),
)
WITH_TWO_MESSAGES = ("mime",)


def shapes():
    examples = jax.tree.map(jnp.asarray, federation.examples())
    return jax.eval_shape(lambda e: (e.population(), e.of_client(jnp.int32(0))), examples)


def aggregated(name, *aggregators):
    algorithm = federation.make(name) if isinstance(name, str) else name
    message, _ = aggregation.shapes_of_upload(algorithm, *shapes())
    for aggregator in aggregators:
        algorithm = aggregation.apply(algorithm, aggregator, message)
    return algorithm


# Executed: a message with and without weight, one that is private besides, means for each class,
# a method that brings an aggregator along, clients that learn from one another.
CASES = {
    "scaffold chain": ("scaffold", *CHAIN),
    "ditto channel": ("ditto", CHAIN[0], CHAIN[2], CHANNEL),
    "fedproto median": ("fedproto", aggregation.quantize(bits=8), aggregation.median()),
    "fedkd trimmed": ("fedkd", aggregation.trimmed_mean(fraction=0.3)),
    "fedcac top_k": ("fedcac", aggregation.top_k(fraction=0.5)),
}


@functools.cache
def outcome_of(case):
    return federation.run(aggregated(*CASES[case]))


@pytest.mark.parametrize("case", CASES)
def test_the_engine_equals_the_plain_loop(case):
    algorithm = aggregated(*CASES[case])
    examples = jax.tree.map(jnp.asarray, federation.examples())
    init = build_init(algorithm, devices=jax.devices()[:1])
    state = init(federation.examples(), jax.random.key(0))
    state = state._replace(clients=[None] * examples.num_clients)
    with jax.debug_key_reuse(True):
        for _ in range(federation.NUM_ROUNDS):
            state = reference_round(
                algorithm, federation.PLAN, state, examples, federation.NUM_ROUNDS
            )
    outcome = outcome_of(case)
    federation.assert_close(outcome.server, jax.tree.map(np.asarray, state.server))
    for i, client in enumerate(state.clients):
        if client is not None:
            own = jax.tree.map(lambda leaf, i=i: leaf[i], outcome.clients)
            federation.assert_close(own, jax.tree.map(np.asarray, client))
    plain = federation.run(federation.make(CASES[case][0]))
    method = outcome.server
    while isinstance(method, aggregation.WithAggregation):
        method = method.method
    assert np.max(np.abs(cohorts.flat(method) - cohorts.flat(plain.server))) > 1e-4


@pytest.mark.parametrize("case", ["scaffold chain", "fedproto median"])
def test_devices_chunks_and_padding_change_nothing(case):
    one, spread = outcome_of(case), federation.run(aggregated(*CASES[case]), devices=4, chunk=2)
    federation.assert_close(one.server, spread.server)
    federation.assert_close(one.clients, spread.clients)
    for metric in set(one.metrics) - {"slots"}:
        federation.assert_close(one.metrics[metric], spread.metrics[metric])


def test_bytes_are_those_of_the_clients_that_took_part():
    # Of 39 numbers 16, a bit for each of the 39, the weight, one term of the bound and two of the
    # channel.
    found = outcome_of("ditto channel").metrics["upload_bytes"]
    np.testing.assert_allclose(found, (16 * 32 + 39 + 32 * (1 + 1 + 2)) / 8, rtol=1e-6)
    # Of 78 numbers 32 of 4 bits, a bit for each, eight scales, a weight and a term.
    found = outcome_of("scaffold chain").metrics["upload_bytes"]
    np.testing.assert_allclose(found, (32 * 4 + 78 + 32 * (8 + 1 + 1)) / 8, rtol=1e-6)
    assert "upload_bytes" not in federation.run(federation.make("ditto"), rounds=1).metrics
    # Whatever the server sees of each client counts too: a model and its mask of one byte.
    cac = outcome_of("fedcac top_k").metrics["upload_bytes"]
    assert np.all(cac > 39 * 5 + 39 / 8)


WITH_ONE_SUM = [n for n in ALGORITHMS if n not in (*WITHOUT_A_SUM, *WITH_TWO_MESSAGES)]


@pytest.mark.parametrize("name", WITH_ONE_SUM)
def test_every_method_with_a_sum_keeps_its_form(name):
    algorithm = federation.make(name)
    message, _ = aggregation.shapes_of_upload(algorithm, *shapes())
    weights = jax.eval_shape(messages.of_client, message).weights
    if name == "proar_pfed":  # which ends with the channel itself
        chain = ()
    elif algorithm.aggregators:
        chain = (CHAIN[2], CHANNEL)
    elif any(weight is not None and weight.ndim for weight in weights):
        chain = CHAIN[1:2]
    else:
        chain = CHAIN
    both = [chain] if name == "proar_pfed" else [chain, (aggregation.median(),)]
    for made in (aggregated(name, *each) for each in both):
        examples = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, federation.examples()))

        def one_round(examples, made=made):
            key, client_id = jax.random.key(0), jnp.int32(0)
            context = core.Context(key, jnp.int32(0), jnp.int32(3), client_id, key)
            profile, data = examples.profile(client_id), examples.of_client(client_id)
            server = made.init_server(examples.population(), key)
            client = made.init_client(server, profile, key)
            output = made.update_client(server, client, data, context)
            each = jax.tree.map(lambda leaf: leaf[None], output.each)
            cohort = core.Cohort(client_id[None], data.size[None], 8)
            uploads = core.Uploads(output.sum, each)
            after = made.server_update(server, uploads, cohort, context)
            moved = output.state
            if made.exchange is not None:
                moved = made.exchange(after, moved, data, uploads, cohort, jnp.int32(0), context)
            made.personalize(after, moved, data, context)
            return (server, client), (after, moved)

        before, after = jax.eval_shape(one_round, examples)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), before) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), after
        )


@pytest.mark.parametrize("case", ["scaffold chain", "fedproto median"])
def test_an_empty_cohort_changes_nothing(case):
    algorithm, used = aggregated(*CASES[case]), jax.devices()[:2]
    everyone_fails = sampling.CohortPlan(num_clients=8, size=3, dropout=1 - 1e-9)
    outcome = federation.run(algorithm, plan=everyone_fails, devices=2, rounds=2)
    assert np.all(outcome.metrics["cohort"] == 0)
    assert np.all(outcome.metrics["not_finite"] == ALL_FINITE)
    init = build_init(algorithm, devices=used)
    untouched = to_host(init(mapping.replicate(federation.examples(), used), jax.random.key(0)), 9)
    federation.assert_close(outcome.server, untouched.server, tolerance=0)
    federation.assert_close(outcome.clients, untouched.clients, tolerance=0)


def sums_of(bad):
    """A method whose client 5 uploads `bad` in the second round, in a state that is finite."""

    def client_update(server, client, data, context):
        is_bad = (context.client_id == 5) & (context.round == 1)
        value = jnp.where(is_bad, bad, 1.0) * jnp.array([1.0, 0.0, 2.0])
        return core.ClientOutput(
            state=(), sum=core.weighted(value, 1.0), metrics={"loss": jnp.float32(0)}
        )

    return core.Algorithm(
        init_server=lambda population, key: jnp.zeros(3),
        init_client=lambda server, profile, key: (),
        client_update=client_update,
        server_update=lambda server, uploads, cohort, context: core.mean(uploads.total),
        personalize=lambda server, client, data, context: server,
    )


@pytest.mark.parametrize(
    "aggregator",
    [
        *(aggregation.clip(), aggregation.adaptive_clip(), aggregation.quantize()),
        *(aggregation.over_the_air(), aggregation.median(), aggregation.trimmed_mean(fraction=0.3)),
    ],
    ids=lambda aggregator: aggregator.name,
)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_no_aggregator_hides_a_message_that_is_not_finite(aggregator, bad):
    all_clients = sampling.CohortPlan(num_clients=8, size=8)
    algorithm = aggregated(sums_of(bad), aggregator)
    found = federation.run(algorithm, plan=all_clients, rounds=2).metrics["not_finite"]
    assert found.tolist() == [ALL_FINITE, SERVER_NOT_FINITE]


def test_memory_that_is_not_finite_names_the_client():
    all_clients = sampling.CohortPlan(num_clients=8, size=8)
    algorithm = aggregated(sums_of(jnp.nan), aggregation.top_k(fraction=0.3))
    found = federation.run(algorithm, plan=all_clients, rounds=2).metrics["not_finite"]
    assert found.tolist() == [ALL_FINITE, 5]


def test_the_order_of_aggregators_is_checked():
    for wrong in (
        (aggregation.clip(), aggregation.top_k()),
        (aggregation.quantize(), aggregation.top_k()),
        (aggregation.median(), aggregation.quantize()),
        (aggregation.clip(), aggregation.median()),
        (aggregation.over_the_air(), aggregation.trimmed_mean()),
        (aggregation.low_rank(), aggregation.quantize()),
        (aggregation.quantize(), aggregation.over_the_air()),
        (aggregation.clip(), aggregation.adaptive_clip()),
        (aggregation.top_k(), aggregation.top_k()),
    ):
        first, second = (aggregator.name for aggregator in wrong)
        with pytest.raises(UserError, match=f"'{second}' .* cannot follow '{first}'"):
            aggregated("fedavg", *wrong)
    assert aggregated("fedavg", *CHAIN).aggregators == CHAIN


def test_what_sees_each_message_says_so_and_uploads_it():
    for aggregator in (
        *CHAIN,
        CHANNEL,
        aggregation.clip(),
        aggregation.low_rank(),
        aggregation.median(),
    ):
        made = aggregated("fedavg", aggregator)
        summed, each = aggregation.shapes_of_upload(made, *shapes())
        assert bool(jax.tree.leaves(each)) == aggregator.sees_each_message
        assert bool(jax.tree.leaves(summed)) == (not aggregator.sees_each_message)
    assert [name for name, make in aggregation.AGGREGATORS.items() if make().sees_each_message] == [
        "median",
        "trimmed_mean",
    ]


def test_fedem_counts_absent_clients_whatever_the_weights():
    algorithm = federation.make("fedem", absent_count=True)
    plan = sampling.CohortPlan(num_clients=8, size=8)
    plain = federation.run(algorithm, plan=plan, rounds=1)
    loose = aggregated(algorithm, aggregation.clip(bound=1e9))
    uniform = federation.run(loose, plan=plan, rounds=1)
    start = to_host(
        build_init(algorithm, devices=jax.devices()[:1])(federation.examples(), jax.random.key(0)),
        9,
    )
    moved, expected = (
        np.linalg.norm(cohorts.flat(after.server.average) - cohorts.flat(start.server.average))
        for after in (uniform, plain)
    )
    assert 0.3 < moved / expected < 3
