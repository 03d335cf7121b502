"""From a network, the loss of its outputs and their metrics to a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.core import Batch, Params, Task, mean_over, tree
from pfljax.models.model import Model, map_measurements

# Mean or standard deviation of inputs: for all of them, or by the names of their arrays.
Statistic = float | np.ndarray | Mapping[str, float | np.ndarray]


def from_network(
    model: Model,
    example_losses: Callable[[jax.Array, Batch], jax.Array],
    metrics: Callable[[jax.Array, Batch], dict[str, jax.Array]],
    *,
    score: str,
    lower_is_better: tuple[str, ...] = ("loss",),
    num_classes: int = 0,
    mean: Statistic = 0.0,
    std: Statistic = 1.0,
) -> Task:
    """Makes the task of a network.

        losses(theta, batch) = example_losses(f_theta((x - mean) / std), batch)
        loss(theta, batch) = mean over real examples of the losses

    Args:
      model: Network.
      example_losses: `(outputs, batch) -> [B]`, the loss of each example, masked or not.
      metrics: `(outputs, batch) -> {name: []}`, sums over the batch's real examples.
      score: Name of the metric by which models are selected and compared.
      lower_is_better: The names of the metrics of which a smaller value is better.
      num_classes: Number of classes; 0 for a task without classes.
      mean: Subtracted from the stored inputs, inside the program; one number, or an array that fits
        the last axes of an example; where examples are dicts of arrays, one number for all of them
        or a dict by their names. Inputs that are ids stay as they are.
      std: Divides the inputs after that.

    Returns:
      The task.
    """

    def standardized(params, inputs):
        dtype = tree.dtype(params)

        def standardize(x, mean, std):
            return (x.astype(dtype) - jnp.asarray(mean, dtype)) / jnp.asarray(std, dtype)

        return map_measurements(standardize, inputs, model.reads_ids, mean, std)

    def features(params, inputs, mask=None, key=None):
        return model.features(params, standardized(params, inputs), mask, key)

    def predict(params, inputs, mask=None, key=None):
        return model.head(params, features(params, inputs, mask, key), mask, key)

    def losses(params, batch, key, train=True):
        mode = (batch.mask, key) if train else ()
        return example_losses(predict(params, batch.inputs, *mode), batch)

    def observe(params, batch):
        return model.observe(params, standardized(params, batch.inputs), batch.mask)

    return Task(
        init=model.init,
        losses=losses,
        loss=mean_loss(losses),
        predict=predict,
        features=features,
        head=model.head,
        is_head=model.is_head,
        metrics=metrics,
        num_classes=num_classes,
        num_features=model.num_features,
        input_shape=model.input_shape,
        standardize=standardized,
        layers=model.layers,
        is_norm=model.is_norm,
        is_adapter=model.is_adapter,
        is_prompt=model.is_prompt,
        class_features=model.class_features,
        is_statistic=model.is_statistic,
        observe=None if model.observe is None else observe,
        output_losses=example_losses,
        score=score,
        lower_is_better=lower_is_better,
    )


def mean_loss(losses: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns `Task.loss`, the mean over a batch's real examples, of `Task.losses`."""

    def loss(params: Params, batch: Batch, key: jax.Array, train: bool = True) -> jax.Array:
        return mean_over(losses(params, batch, key, train), batch.mask)

    return loss
