"""Classification: a network, the cross-entropy, and the number of right answers."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from pfljax.core import Task, mean_over, tree
from pfljax.models.model import Model


def classification(model: Model, *, num_classes: int, mean: float = 0.0, std: float = 1.0) -> Task:
    """Returns the task of classifying with `model`.

        L(theta, batch) = mean over real examples of -log softmax(f_theta((x - mean) / std))_y

    Args:
      model: a network with `num_classes` outputs.
      num_classes: `C`.
      mean: subtracted from the stored inputs, inside the program.
      std: divides them after that.
    """

    def standardized(parameters, inputs):
        dtype = tree.dtype(parameters)
        return (inputs.astype(dtype) - mean) / std

    def features(parameters, inputs):
        return model.features(parameters, standardized(parameters, inputs))

    def predict(parameters, inputs):
        return model.head(parameters, features(parameters, inputs))

    def losses(parameters, batch, key):
        inputs = standardized(parameters, batch.inputs)
        hidden = model.features(parameters, inputs, batch.mask)
        logits = model.head(parameters, hidden, batch.mask)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)

    def loss(parameters, batch, key):
        return mean_over(losses(parameters, batch, key), batch.mask)

    def observe(parameters, batch):
        return model.observe(parameters, standardized(parameters, batch.inputs), batch.mask)

    def metrics(logits, batch):
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        right = jnp.argmax(logits, axis=-1) == batch.targets
        return {
            "accuracy": jnp.sum(right * batch.mask, dtype=each.dtype),
            "loss": jnp.sum(each * batch.mask),
        }

    return Task(
        init=model.init,
        losses=losses,
        loss=loss,
        predict=predict,
        features=features,
        head=model.head,
        is_head=model.is_head,
        metrics=metrics,
        num_classes=num_classes,
        num_features=model.num_features,
        layers=model.layers,
        is_norm=model.is_norm,
        observe=None if model.observe is None else observe,
    )
