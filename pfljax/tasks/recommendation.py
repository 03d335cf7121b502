"""Recommendation: which item a client chooses next, how it rates it, and which tags it has."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from pfljax.core import Task
from pfljax.metrics.ranking import gains, hits, num_ahead
from pfljax.models.model import Model
from pfljax.tasks.from_network import from_network

# The score of what is no choice: lower than that of any item, but finite.
_LAST = -1e9
# The least base of the focal factor.
_SMALLEST = 1e-6


def recommendation(
    model: Model,
    *,
    num_classes: int,
    next_item: float = 1.0,
    rating: float = 0.1,
    tags: float = 1.0,
    gamma: float = 2.0,
    target_mean: float = 0.0,
    target_std: float = 1.0,
) -> Task:
    """Returns the task of predicting a client's next item, its rating and its tags at once.

        L(theta, batch) = mean over real examples of
            next_item (1 - p)^gamma (-log p)                  p = softmax of the choices' scores
            + rating (f - (y - target_mean) / target_std)^2   at the chosen item 0
            + tags mean over tags c of (1 - p_c)^gamma (-log p_c)

    with `p_c` the probability that the chosen item has tag c if it does, and otherwise that it does
    not. An example is `[S, 2 + columns]` ids: first the chosen item and others that were not
    chosen, and then the client's history, empty rows included. An item's columns are its id, the
    client's rating, and attributes, of which 1 to `num_classes` are tags; a choice is an item with
    an id and without a rating. Targets are the ratings of the chosen items.

    Metrics: ndcg (the score), 1 / log2(2 + r) where r < 10 other choices are ranked before the
    chosen one, and else 0; hit, whether r < 10; rating_mae, the absolute error in the units of the
    ratings; tag_precision, whether the tag with the highest logit is one of the chosen item's;
    loss. A task with the weight 0 is not trained, and its metric is that of initial params.

    Args:
      model: Network with outputs `[B, S + 1 + num_classes]`: scores, rating, logits of tags.
      num_classes: Number of tags.
      next_item: Weight of the loss of the next item.
      rating: Weight of the loss of the rating.
      tags: Weight of the loss of the tags.
      gamma: Exponent of the focal factor; 0 for the cross-entropy.
      target_mean: Subtracted from the ratings, inside the program.
      target_std: Divides the ratings after that.

    Returns:
      The task.

    References:
      Wei, Jin, Wang et al., "Towards Unified Multi-Modal Personalization: Large Vision-Language
      Models for Generative Recommendation and Beyond", 2024, https://arxiv.org/abs/2403.10667
      (weighted tasks and the focal factor).
    """

    def parts(outputs, batch):
        """Returns the scores of the choices, ratings and logits of tags."""
        slots = batch.inputs.shape[1]
        is_choice = (batch.inputs[..., 0] > 0) & (batch.inputs[..., 1] == 0)
        scores = jnp.where(is_choice, outputs[:, :slots], _LAST)
        return scores, outputs[:, slots], outputs[:, slots + 1 :]

    def tags_of(batch):
        """Returns `[B, num_classes]` bool, the tags of the chosen items."""
        attributes = batch.inputs[:, 0, 2:, None]
        return jnp.any(attributes == jnp.arange(1, num_classes + 1), axis=1)

    def focal(loss):
        # At a probability of 1 a power below 1 has no gradient; the loss is 0 there anyway.
        return jnp.maximum(-jnp.expm1(-loss), _SMALLEST) ** gamma * loss

    def rating_errors(ratings, batch):
        return ratings - (batch.targets.astype(ratings.dtype) - target_mean) / target_std

    def losses(outputs, batch):
        scores, ratings, logits = parts(outputs, batch)
        of_choice = -jax.nn.log_softmax(scores, axis=-1)[:, 0]
        of_tags = optax.sigmoid_binary_cross_entropy(logits, tags_of(batch).astype(logits.dtype))
        return (
            next_item * focal(of_choice)
            + rating * rating_errors(ratings, batch) ** 2
            + tags * jnp.mean(focal(of_tags), axis=-1)
        )

    def metrics(outputs, batch):
        scores, ratings, logits = parts(outputs, batch)
        ahead = num_ahead(scores)
        best = jnp.argmax(logits, axis=-1)[:, None]
        of_examples = {
            "ndcg": gains(ahead),
            "hit": hits(ahead),
            "rating_mae": target_std * jnp.abs(rating_errors(ratings, batch)),
            "tag_precision": jnp.take_along_axis(tags_of(batch), best, axis=1)[:, 0],
            "loss": losses(outputs, batch),
        }
        return {name: jnp.sum(jnp.where(batch.mask, x, 0)) for name, x in of_examples.items()}

    return from_network(
        model, losses, metrics, score="ndcg", lower_is_better=("rating_mae", "loss")
    )
