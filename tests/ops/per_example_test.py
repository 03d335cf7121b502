"""Rows that a function computes of all examples, batch after batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pfljax import core
from pfljax.ops import per_example


def test_rows_are_in_stored_order_whatever_the_batches():
    inputs = np.arange(20, dtype=np.float32).reshape(10, 2)
    data = core.ClientData(inputs, np.arange(10), np.int32(2), np.int32(5), None, max_size=7)
    context = core.Context(jax.random.key(0), jnp.int32(0), jnp.int32(1))
    local = core.LocalTraining(optax.sgd(0.1), batch_size=3, epochs=4, drop_remainder=True)

    @jax.jit
    def rows(size):
        view = core.ClientData(inputs, data.targets, data.offset, size, None, data.max_size)
        return per_example.collect(
            lambda batch: (jnp.sum(batch.inputs, axis=1), batch.targets, batch.mask),
            view,
            context,
            local,
        )

    for size in (5, 0, 7):
        sums, targets, mask = rows(jnp.int32(size))
        assert sums.shape == targets.shape == mask.shape == (9,)
        np.testing.assert_array_equal(mask, np.arange(9) < size)
        np.testing.assert_array_equal(targets[:size], np.arange(2, 2 + size))
        np.testing.assert_array_equal(sums[:size], inputs.sum(axis=1)[2 : 2 + size])


def test_other_targets_belong_to_the_same_examples():
    inputs = np.arange(20, dtype=np.float32).reshape(10, 2)
    order = jnp.array([3, 0, 4, 1], jnp.int32)
    for data in (
        core.ClientData(inputs, np.arange(10), np.int32(2), np.int32(3), None, max_size=4),
        core.ClientData(inputs, np.arange(10), np.int32(2), np.int32(3), None, 4, order),
    ):
        scores = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
        other = per_example.with_targets(data, jnp.array(scores)).take(jnp.arange(5))
        before = data.take(jnp.arange(5))
        np.testing.assert_array_equal(other.inputs, before.inputs)
        np.testing.assert_array_equal(other.mask, [True, True, True, False, False])
        np.testing.assert_array_equal(other.targets[:3], scores[:3])
