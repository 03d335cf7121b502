"""Stochastic quantization: levels, bits and no bias."""

import cohorts
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import aggregation, core
from pfljax.aggregation import messages
from pfljax.errors import UserError


def coded(bits, leaf, seed=0):
    """The quantized values of an array, and their size."""
    upload = core.weighted(leaf, 1)
    message, size = messages.of_client(upload), messages.size(upload, ())
    encoded = aggregation.quantize(bits=bits).encode(
        message, size, (), (), cohorts.context(seed=seed)
    )
    return encoded.message.values[0], encoded.size.bits


LEAF = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_neighbouring_levels_without_bias(bits):
    levels = 2 ** (bits - 1) - 1
    step = float(jnp.max(jnp.abs(LEAF))) / levels
    draws = 400
    many = np.stack([coded(bits, LEAF, seed)[0] for seed in range(8)])
    np.testing.assert_allclose(many / step, np.round(many / step), atol=2e-3)
    assert np.all(np.abs(many - LEAF) < step * (1 + 1e-4))
    found = jax.jit(jax.vmap(lambda seed: coded(bits, LEAF, seed)[0]))(jnp.arange(draws))
    # A level up or down has variance step^2 / 4 at most.
    bound = 5 * step / 2 / np.sqrt(draws) + 1e-6
    assert np.max(np.abs(np.mean(found, axis=0) - LEAF)) < bound
    assert np.max(np.std(found, axis=0)) > step / 4


def test_bits_zeros_and_the_largest_entry():
    values, bits = coded(4, LEAF)
    assert bits == 30 * 4 + 32 + 32  # the scale and the weight
    largest = np.argmax(np.abs(LEAF))
    np.testing.assert_allclose(np.ravel(values)[largest], np.ravel(LEAF)[largest], rtol=1e-6)
    zeros, _ = coded(4, jnp.zeros((2, 3)))
    np.testing.assert_array_equal(zeros, 0)
    tiny, _ = coded(8, jnp.full(3, 1e-36, jnp.float32))
    np.testing.assert_allclose(tiny, 1e-36, rtol=1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(bad):
    assert not np.all(np.isfinite(coded(8, LEAF.at[0, 0].set(bad))[0]))


def test_entries_that_a_stage_before_left_out_stay_out_and_do_not_count():
    sent = cohorts.uploads()
    first = aggregation.top_k(fraction=0.1)
    message = messages.of_client(sent[0])
    some = first.encode(
        message, messages.size(sent[0], ()), first.init_client(message), (), cohorts.context()
    )
    after = aggregation.quantize(bits=4).encode(some.message, some.size, (), (), cohorts.context(1))
    before, now = cohorts.flat(some.message.values), cohorts.flat(after.message.values)
    np.testing.assert_array_equal(now[before == 0], 0)
    assert after.size.bits == 2 * (4 + 5) + 32 + 3 * 32


def test_the_number_of_bits_may_be_traced():
    with pytest.raises(UserError, match="bits is 1; it must be between 2 and 16"):
        aggregation.quantize(bits=1)
    traced = jax.jit(lambda bits: coded(bits, LEAF))
    for bits in (3, 8):
        np.testing.assert_allclose(traced(bits)[0], coded(bits, LEAF)[0], rtol=1e-6)
