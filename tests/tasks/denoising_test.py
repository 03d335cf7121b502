"""Denoising: the loss by the formula, and federated training and evaluation that draw noise."""

import federation
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pfljax import core, models, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.core import Batch
from pfljax.engine.evaluate import scorer
from pfljax.errors import UserError
from pfljax.models.model import from_flax

MEAN, STD, EXAMPLE, TIMESTEPS = 3.0, 2.0, 0.5, 10


class Solver(nn.Module):
    """The noise in examples that are all `EXAMPLE` after standardization, from the schedule."""

    def __call__(self, inputs):
        shares = jnp.asarray(np.cumprod(1 - np.linspace(0.1, 0.5, TIMESTEPS)), jnp.float32)
        share = shares[jnp.round(inputs["time"] * TIMESTEPS).astype(int) - 1][:, None]
        return (inputs["noisy"] - jnp.sqrt(share) * EXAMPLE) / jnp.sqrt(1 - share)


class Scale(nn.Module):
    """Outputs are the inputs, times one parameter."""

    start: float

    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.constant(self.start), ())


class Both(nn.Module):
    """The noisy example and its time, side by side."""

    def __call__(self, inputs):
        return jnp.concatenate([inputs["noisy"], inputs["time"][:, None]], axis=1)


def shape(width):
    return {"noisy": (width,), "time": ()}


def solver(scale):
    model = from_flax(Solver(), Scale(scale), shape(4))
    return tasks.denoising(
        model, mean=MEAN, std=STD, num_timesteps=TIMESTEPS, beta_min=0.1, beta_max=0.5
    )


def test_who_knows_the_example_knows_the_noise():
    """Scaled by 0 the solver has the error of the noise itself, whose variance is 1."""
    inputs = jnp.full((2000, 4), MEAN + STD * EXAMPLE)
    batch = Batch(inputs, jnp.zeros(2000, jnp.int32), jnp.arange(2000) < 1500)
    key = jax.random.key(0)
    for scale, loss in ((1.0, 0.0), (0.0, 1.0), (3.0, 4.0)):
        task = solver(scale)
        params = task.init(key)
        found = task.loss(params, batch, key)
        np.testing.assert_allclose(found, loss, rtol=0.05, atol=1e-8)
        sums = task.evaluate(params, batch, key)
        np.testing.assert_allclose(sums["mse"] / 1500, found, rtol=1e-5, atol=1e-8)
        assert sums["loss"] == sums["mse"]


def test_the_key_decides_noise_and_timesteps():
    task, batch = solver(0.5), Batch(jnp.ones((3, 4)), jnp.zeros(3, jnp.int32), jnp.ones(3, bool))
    params = task.init(jax.random.key(0))
    one, same, other = (task.losses(params, batch, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.any(one == other)


def test_a_federation_learns_to_denoise():
    model = from_flax(Both(), nn.Dense(federation.NUM_FEATURES), shape(federation.NUM_FEATURES))
    task = tasks.denoising(model, num_timesteps=TIMESTEPS, beta_min=0.1, beta_max=0.5)
    algorithm = ALGORITHMS["fedavg"](task, core.LocalTraining(optax.sgd(0.1), batch_size=4))
    outcome = federation.run(algorithm, score=task, rounds=40, chunk=2)
    scores, before = outcome.scores, outcome.untrained_scores
    assert scores["global"]["test"]["mse"].sum() < 0.7 * before["global"]["test"]["mse"].sum()
    # FedAvg's models are one, and both are scored with the same noise.
    federation.assert_close(scores["personal"], scores["global"])


def test_outputs_of_several_models_are_refused():
    task = solver(1.0)
    with pytest.raises(UserError, match="combines the outputs of several models"):
        scorer(task, federation.make("fedem").predict)
    scorer(task, federation.make("ditto").predict)


def test_metrics_of_whole_outputs_are_refused():
    task = solver(1.0)._replace(client_metrics={"spread": lambda outputs, targets, mask: 0.0})
    with pytest.raises(UserError, match="spread need all outputs of a client at once"):
        scorer(task)


def test_batch_normalization_is_refused():
    with pytest.raises(UserError, match="batch normalization"):
        tasks.denoising(models.mlp_bn((2,), 2, widths=(2,)))
