"""The two modes of batch normalization, as arguments of a task's functions."""

import federation
import jax
import jax.numpy as jnp
import numpy as np

from pfljax import core
from pfljax.core import params


def test_the_mask_chooses_the_mode_of_batch_normalization():
    task = federation.task("mlp_bn")
    rows = jax.random.normal(jax.random.key(1), (6, federation.NUM_FEATURES))
    mask = jnp.arange(6) < 4
    batch = core.Batch(rows, jnp.array([0, 1, 2, 0, 1, 2]), mask)
    model = task.init(jax.random.key(0))
    model = params.replace_params(model, task.observe(model, batch))

    running, trained = task.predict(model, rows), task.predict(model, rows, mask)
    assert federation.differ(running, trained)
    for outputs, given, train in ((running, None, False), (trained, mask, True)):
        features = task.features(model, rows, given)
        federation.assert_close(task.head(model, features, given), outputs)
        losses = -jax.nn.log_softmax(outputs)[jnp.arange(6), batch.targets]
        federation.assert_close(task.losses(model, batch, None, train), losses)
        mean = np.mean(np.asarray(losses)[:4])
        federation.assert_close(task.loss(model, batch, None, train), mean)
    # Padding has no part in a batch's statistics.
    other = task.predict(model, rows.at[4:].set(9.0), mask)
    federation.assert_close(other[:4], trained[:4])
