"""Regression: each example has a number, such as a measurement or a rating."""

from __future__ import annotations

import jax.numpy as jnp

from pfljax.core import Task
from pfljax.models.model import Model
from pfljax.tasks.from_network import Statistic, from_network


def regression(
    model: Model,
    *,
    mean: Statistic = 0.0,
    std: Statistic = 1.0,
    target_mean: float = 0.0,
    target_std: float = 1.0,
) -> Task:
    """Returns the task of predicting a number, such as a measurement or a rating.

        L(theta, batch) = mean over real examples of (f_theta(x) - (y - target_mean) / target_std)^2

    Metrics: the squared error (the score, the less the better) and the absolute error, in the
    units of the targets; the loss. The share of the targets' variance that is explained (R2) is
    1 - loss, with the mean and the variance of all clients' targets.

    Args:
      model: Network with one output.
      mean: Subtracted from the stored inputs, as in `from_network`.
      std: Divides the inputs after that.
      target_mean: Subtracted from the targets, inside the program.
      target_std: Divides the targets after that.

    Returns:
      The task.
    """

    def encode(targets):
        return ((targets - target_mean) / target_std)[:, None]

    def errors(outputs, batch):
        return (outputs - encode(batch.targets.astype(outputs.dtype)))[:, 0]

    def losses(outputs, batch):
        return errors(outputs, batch) ** 2

    def metrics(outputs, batch):
        error = errors(outputs, batch) * batch.mask
        return {
            "mse": target_std**2 * jnp.sum(error**2),
            "mae": target_std * jnp.sum(jnp.abs(error)),
            "loss": jnp.sum(error**2),
        }

    def decode(outputs):
        return target_mean + target_std * outputs[:, 0]

    of_outputs = from_network(
        model,
        losses,
        metrics,
        score="mse",
        lower_is_better=("mse", "mae", "loss"),
        mean=mean,
        std=std,
    )
    return of_outputs._replace(decode=decode, encode=encode)
