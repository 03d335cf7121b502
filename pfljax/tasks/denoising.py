"""Denoising, the task of diffusion models: the noise that was added to an example is predicted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.core import Batch, Task, tree
from pfljax.errors import UserError
from pfljax.models.model import Model
from pfljax.ops import diffusion
from pfljax.tasks.from_network import from_network, mean_loss


def denoising(
    model: Model,
    *,
    mean: float | np.ndarray = 0.0,
    std: float | np.ndarray = 1.0,
    num_timesteps: int = 1000,
    beta_min: float = 1e-4,
    beta_max: float = 0.02,
) -> Task:
    """Returns the task of predicting the noise that was added to an example.

        t ~ uniform{1 .. num_timesteps},   eps ~ N(0, I)
        x_t = sqrt(abar_t) (x - mean) / std + sqrt(1 - abar_t) eps
        abar_t = prod over s <= t of (1 - beta_s),   beta from beta_min to beta_max, evenly spaced
        L(theta, batch) = mean over real examples and their entries of
            (f_theta(x_t, t / num_timesteps) - eps)^2

    Timesteps and noise are drawn from the key, in training for each step and in an evaluation for
    each batch. Targets are not read. Metrics: mse (the score, the less the better), and the same as
    the loss.

    Args:
      model: Network of `{'noisy': x_t [B, ...], 'time': t / num_timesteps [B]}`, with outputs of
        the shape of `x_t`. `Task.predict` takes these inputs too.
      mean: Subtracted from the stored inputs, inside the program; one number, or an array that fits
        the last axes of an example.
      std: Divides the inputs after that.
      num_timesteps: Number of noise levels.
      beta_min: Variance of the noise that the first timestep adds.
      beta_max: Variance of the noise that the last timestep adds.

    Returns:
      The task.

    Raises:
      UserError: The network has batch normalization.

    References:
      Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020,
      https://arxiv.org/abs/2006.11239 (the simplified objective).
    """
    if model.observe is not None:
        raise UserError("Denoising takes no model with batch normalization; choose another model.")
    fractions = diffusion.signal_fractions(num_timesteps, beta_min, beta_max)

    def errors(outputs, batch):
        return jnp.mean((outputs - batch.targets) ** 2, axis=tuple(range(1, outputs.ndim)))

    def metrics(outputs, batch):
        error = jnp.sum(errors(outputs, batch) * batch.mask)
        return {"mse": error, "loss": error}

    of_noisy = from_network(model, errors, metrics, score="mse", lower_is_better=("mse", "loss"))

    def add_noise(params, batch, time_key, noise_key):
        """Returns the batch with noisy examples, the noise being the targets."""
        dtype = tree.dtype(params)
        x = (batch.inputs.astype(dtype) - jnp.asarray(mean, dtype)) / jnp.asarray(std, dtype)
        noisy, time, noise = diffusion.add_noise(x, fractions, time_key, noise_key)
        return Batch({"noisy": noisy, "time": time}, noise, batch.mask)

    def losses(params, batch, key, train=True):
        key, *keys = jax.random.split(key, 3)
        return of_noisy.losses(params, add_noise(params, batch, *keys), key, train)

    def params_metrics(params, batch, key):
        key, *keys = jax.random.split(key, 3)
        return of_noisy.evaluate(params, add_noise(params, batch, *keys), key)

    return of_noisy._replace(
        output_losses=None,
        losses=losses,
        loss=mean_loss(losses),
        metrics=None,
        params_metrics=params_metrics,
    )
