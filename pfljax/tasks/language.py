"""Language modelling: at each position of a text the next token is predicted."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from pfljax.core import Task
from pfljax.models.ids import PADDING
from pfljax.models.model import Model
from pfljax.tasks.from_network import from_network


def next_token(model: Model, *, num_classes: int) -> Task:
    """Returns the task of predicting at every position of a text the token that follows.

        L(theta, batch) = mean over real examples of
            the mean over positions t with a target of -log softmax(f_theta(x_1 .. x_t))_{y_t}

    Targets are `[B, T]`, 0 where nothing follows. A text of which only one next token is predicted,
    as in LEAF's Shakespeare, is a `classification`.

    Metrics: accuracy (the score) and loss, which count tokens.

    Args:
      model: Network of ids `[B, T]` with outputs `[B, T, num_classes]`.
      num_classes: Size of the vocabulary, the padding included.

    Returns:
      The task.
    """

    def of_tokens(logits, batch):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return losses, (batch.targets != PADDING).astype(losses.dtype)

    def example_losses(logits, batch):
        losses, real = of_tokens(logits, batch)
        return jnp.sum(losses * real, axis=-1) / jnp.maximum(jnp.sum(real, axis=-1), 1)

    def metrics(logits, batch):
        losses, real = of_tokens(logits, batch)
        counted = real * batch.mask[:, None]
        correct = jnp.argmax(logits, axis=-1) == batch.targets
        return {
            "accuracy": jnp.sum(correct * counted),
            "loss": jnp.sum(losses * counted),
            "count": jnp.sum(counted),
        }

    return from_network(model, example_losses, metrics, score="accuracy", num_classes=num_classes)
