"""Top-k against NumPy, and what error feedback keeps."""

import cohorts
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import aggregation, core
from pfljax.aggregation import messages
from pfljax.errors import UserError

DIMENSION = 20  # numbers of a message of `cohorts`


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.32, 1.0])
def test_the_largest_entries_are_sent_and_the_rest_later(fraction):
    aggregator = aggregation.top_k(fraction=fraction)
    count = int(np.ceil(fraction * DIMENSION))
    memory, states = np.zeros((3, DIMENSION)), None
    for round in range(4):
        sent = cohorts.uploads(seed=round)
        outcome = cohorts.one_round(aggregator, sent, states, round=round)
        expected = np.zeros(DIMENSION)
        for k, upload in enumerate(sent):
            wanted = cohorts.values(upload) + memory[k]
            kept = np.argsort(-np.abs(wanted))[:count]
            coded = np.zeros(DIMENSION)
            coded[kept] = wanted[kept]
            memory[k] = wanted - coded
            weights = np.r_[np.full(15, float(upload[0].weight)), np.ones(5)]
            expected += weights * coded
        total, plain = outcome.total
        np.testing.assert_allclose(cohorts.flat((total.value, plain)), expected, atol=2e-5)
        assert total.weight == 6
        states = outcome.clients
        for k in range(3):
            np.testing.assert_allclose(cohorts.flat(states[k]), memory[k], atol=1e-5)
    assert (np.abs(memory).max() > 0.1) == (fraction < 1)


def test_nothing_is_lost_over_rounds():
    aggregator = aggregation.top_k(fraction=0.2)
    states, arrived, wanted = None, np.zeros(DIMENSION), np.zeros(DIMENSION)
    for round in range(5):
        sent = cohorts.uploads(sizes=(1, 1, 1), seed=round)
        outcome = cohorts.one_round(aggregator, sent, states, round=round)
        states = outcome.clients
        arrived += cohorts.flat((outcome.total[0].value, outcome.total[1]))
        wanted += sum(cohorts.values(upload) for upload in sent)
    left = sum(cohorts.flat(state) for state in states)
    np.testing.assert_allclose(arrived + left, wanted, atol=1e-5)
    assert np.abs(left).max() > 0.1


def test_a_client_without_weight_keeps_everything():
    aggregator = aggregation.top_k(fraction=0.2)
    first = cohorts.one_round(aggregator, cohorts.uploads())
    without = [(core.weighted(u[0].value, 0), 0 * u[1]) for u in cohorts.uploads(seed=1)]
    second = cohorts.one_round(aggregator, without, first.clients, round=1)
    for before, after in zip(first.clients, second.clients, strict=True):
        np.testing.assert_array_equal(cohorts.flat(before[0]), cohorts.flat(after[0]))


def test_bits_of_entries_and_their_indices():
    few = cohorts.one_round(aggregation.top_k(fraction=0.1), cohorts.uploads())
    assert few.bits == [2 * (32 + 5) + 32] * 3  # 5 bits number 20 entries; the weight has 32
    most = cohorts.one_round(aggregation.top_k(fraction=0.5), cohorts.uploads())
    assert most.bits == [10 * 32 + 20 + 32] * 3  # one bit for each entry is less


def test_a_fraction_may_be_traced_and_means_for_each_class_are_refused():
    upload = cohorts.uploads()[0]

    @jax.jit
    def kept(fraction):
        aggregator = aggregation.top_k(fraction=fraction)
        message = messages.of_client(upload)
        state = aggregator.init_client(message)
        size = messages.size(upload, ())
        return aggregator.encode(message, size, state, (), cohorts.context()).size.numbers

    assert [int(kept(f)) for f in (0.1, 0.5)] == [2, 10]
    by_class = core.Weighted(jnp.zeros((3, 2)), jnp.zeros(3))
    with pytest.raises(UserError, match="'top_k' cannot be used with a method that uploads a mean"):
        aggregation.top_k().init_client(messages.of_client(by_class))
    with pytest.raises(UserError, match="fraction is 0; it must be positive and at most 1"):
        aggregation.top_k(fraction=0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_the_threshold_is_that_of_sorting(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        draw = np.random.default_rng(3)
        leaf = jnp.asarray(
            np.r_[draw.normal(size=90) * 10.0 ** draw.integers(-20, 20, 90), 0, 0], dtype
        )
        upload = core.weighted({"a": leaf}, 1)
        message = messages.of_client(upload)
        for fraction in (0.01, 0.3, 0.75, 1.0):
            aggregator = aggregation.top_k(fraction=fraction)
            encoded = aggregator.encode(
                message, messages.size(upload, ()), aggregator.init_client(message), (), None
            )
            count = int(np.ceil(fraction * 92))
            least = np.sort(np.abs(np.asarray(leaf, np.float64)))[-count]
            expected = np.where(np.abs(np.asarray(leaf, np.float64)) >= least, leaf, 0)
            np.testing.assert_array_equal(encoded.message.values[0]["a"], expected)
