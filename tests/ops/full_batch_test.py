"""Means over all examples of a client, in batches of which the last is partial."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pfljax import core
from pfljax.ops import full_batch


def test_mean_loss_and_gradient_are_those_of_all_examples():
    rows = jnp.array([9.0, 0.0, 1.0, 5.0, 9.0])
    data = core.ClientData(rows, rows, jnp.int32(1), jnp.int32(3), jnp.zeros(1), 3)
    context = core.Context(jax.random.key(0), jnp.int32(0), jnp.int32(1))
    # Training settings that would drop the last batch, shuffle and repeat.
    local = core.LocalTraining(optax.sgd(0.1), batch_size=2, epochs=4, drop_remainder=True)

    def losses(model, batch, key, train=True):
        return (model["w"] - batch.inputs) ** 2 + 100 * train

    task = core.Task(*[None] * 8, num_classes=0)._replace(
        losses=losses,
        loss=lambda model, batch, key: core.mean_over(losses(model, batch, key), batch.mask),
    )
    model = {"w": jnp.array(2.0)}
    found = full_batch.mean_loss(task, model, data, context, local)
    np.testing.assert_allclose(found, (4 + 1 + 9) / 3)  # not in training mode
    slope = full_batch.gradient(task, model, data, context, local)
    np.testing.assert_allclose(slope["w"], 2 * (2 - 2))  # the mean of the examples is 2
    slope = full_batch.gradient(task, {"w": jnp.array(3.5)}, data, context, local)
    np.testing.assert_allclose(slope["w"], 2 * (3.5 - 2))
    value, slope = full_batch.value_and_gradient(task, {"w": jnp.array(3.5)}, data, context, local)
    np.testing.assert_allclose(value, (3.5**2 + 2.5**2 + 1.5**2) / 3 + 100)  # in training mode
    np.testing.assert_allclose(slope["w"], 2 * (3.5 - 2))
    no_examples = data.rows(0, 0)
    assert full_batch.mean_loss(task, model, no_examples, context, local) == 0
    assert full_batch.gradient(task, model, no_examples, context, local)["w"] == 0
