"""Tasks: a network, the loss of its outputs, and the metrics by which clients are compared."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pfljax.core import Batch, Task, mean_over, tree
from pfljax.errors import UserError
from pfljax.models.ids import PADDING
from pfljax.models.model import Model

# Items that a ranking shows.
_CUTOFF = 10


def classification(
    model: Model, *, num_classes: int, mean: float | np.ndarray = 0.0, std: float | np.ndarray = 1.0
) -> Task:
    """Returns the task of classifying with `model`.

        L(theta, batch) = mean over real examples of -log softmax(f_theta((x - mean) / std))_y

    Metrics: accuracy (the score), loss.

    Args:
      model: a network with `num_classes` outputs.
      num_classes: `C`.
      mean: subtracted from the stored inputs, inside the program; one number, or an array that fits
        the last axes of an example. Inputs that are ids stay as they are.
      std: divides them after that.
    """

    def each(logits, batch):
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)

    def metrics(logits, batch):
        losses = each(logits, batch)
        right = jnp.argmax(logits, axis=-1) == batch.targets
        return {
            "accuracy": jnp.sum(right * batch.mask, dtype=losses.dtype),
            "loss": jnp.sum(losses * batch.mask),
        }

    return _task(model, each, metrics, mean, std, num_classes=num_classes, score="accuracy")


def next_token(model: Model, *, num_classes: int) -> Task:
    """Returns the task of predicting at every position of a text the token that follows.

        L(theta, batch) = mean over real examples of
            the mean over positions t with a target of -log softmax(f_theta(x_1 .. x_t))_{y_t}

    Targets are `[B, T]`, 0 where nothing follows. A text whose one next token is asked for, as in
    LEAF's Shakespeare, is a `classification`.

    Metrics: accuracy (the score) and loss, which count tokens.

    Args:
      model: a network of ids `[B, T]` with outputs `[B, T, num_classes]`.
      num_classes: the size of the vocabulary, the padding included.
    """

    def of_tokens(logits, batch):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return losses, (batch.targets != PADDING).astype(losses.dtype)

    def each(logits, batch):
        losses, real = of_tokens(logits, batch)
        return jnp.sum(losses * real, axis=-1) / jnp.maximum(jnp.sum(real, axis=-1), 1)

    def metrics(logits, batch):
        losses, real = of_tokens(logits, batch)
        counted = real * batch.mask[:, None]
        right = jnp.argmax(logits, axis=-1) == batch.targets
        return {
            "accuracy": jnp.sum(right * counted),
            "loss": jnp.sum(losses * counted),
            "count": jnp.sum(counted),
        }

    return _task(model, each, metrics, 0.0, 1.0, num_classes=num_classes, score="accuracy")


def regression(
    model: Model,
    *,
    mean: float | np.ndarray = 0.0,
    std: float | np.ndarray = 1.0,
    target_mean: float = 0.0,
    target_std: float = 1.0,
) -> Task:
    """Returns the task of predicting a number, such as a measurement or a rating.

        L(theta, batch) = mean over real examples of (f_theta(x) - (y - target_mean) / target_std)^2

    Metrics: the squared error (the score, the less the better) and the absolute error, in the
    targets' own units; the loss. The share of the targets' variance that is explained (R2) is
    1 - loss, with the mean and the variance of all clients' targets.

    Args:
      model: a network with one output.
      mean: of the inputs, as in `classification`.
      std: likewise.
      target_mean: subtracted from the targets, inside the program.
      target_std: divides them after that.
    """

    def errors(outputs, batch):
        targets = (batch.targets.astype(outputs.dtype) - target_mean) / target_std
        return outputs[:, 0] - targets

    def each(outputs, batch):
        return errors(outputs, batch) ** 2

    def metrics(outputs, batch):
        gaps = errors(outputs, batch) * batch.mask
        return {
            "mse": target_std**2 * jnp.sum(gaps**2),
            "mae": target_std * jnp.sum(jnp.abs(gaps)),
            "loss": jnp.sum(gaps**2),
        }

    return _task(model, each, metrics, mean, std, score="mse", more_is_better=False)


def multi_label(
    model: Model, *, mean: float | np.ndarray = 0.0, std: float | np.ndarray = 1.0
) -> Task:
    """Returns the task of saying of each of several labels whether it applies.

        L(theta, batch) = mean over real examples and labels of the sigmoid cross-entropy

    Targets are `[B, labels]`, each 0 or 1. Metrics: accuracy (the score), the share of labels that
    are told rightly; loss.

    Args:
      model: a network with an output for each label.
      mean: of the inputs, as in `classification`.
      std: likewise.
    """

    def each(logits, batch):
        targets = batch.targets.astype(logits.dtype)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)

    def metrics(logits, batch):
        right = jnp.mean((logits > 0) == (batch.targets > 0), axis=-1, dtype=logits.dtype)
        return {
            "accuracy": jnp.sum(right * batch.mask),
            "loss": jnp.sum(each(logits, batch) * batch.mask),
        }

    return _task(model, each, metrics, mean, std, score="accuracy")


def ranking(model: Model) -> Task:
    """Returns the task of putting the item that was chosen before others that were not.

        L(theta, batch) = mean over real examples and others k of
            -log sigmoid(f_theta(x_0) - f_theta(x_k))

    An example is `[1 + K, ...]`: the chosen item first, then K others. Targets are not looked at.
    Of an item with r of the others before it, equal ones counting half, the metrics are: ndcg (the
    score), 1 / log2(2 + r) if r < 10 and else 0; hit, whether r < 10; auc, 1 - r / K; loss.

    Args:
      model: a network with one output, of a single item.

    References:
      Rendle, Freudenthaler, Gantner, Schmidt-Thieme, "BPR: Bayesian Personalized Ranking from
      Implicit Feedback", 2009, https://arxiv.org/abs/1205.2618.
      He, Liao, Zhang, Nie, Hu, Chua, "Neural Collaborative Filtering", 2017,
      https://arxiv.org/abs/1708.05031 (one chosen item among others).
    """

    if model.observe is not None:
        raise UserError("A ranking takes no model with batch normalization; name another model.")

    def of_items(function):
        """A function of rows as one of rows of rows."""

        def apply(parameters, rows, *mask):
            flat = rows.reshape(-1, *rows.shape[2:])
            items = [jnp.repeat(one, rows.shape[1]) for one in mask if one is not None]
            out = function(parameters, flat, *items)
            return out.reshape(*rows.shape[:2], *out.shape[1:])

        return apply

    def head(parameters, features, *mask):
        return of_items(model.head)(parameters, features, *mask)[..., 0]

    def margins(scores):
        return scores[:, :1] - scores[:, 1:]

    def each(scores, batch):
        return jnp.mean(jax.nn.softplus(-margins(scores)), axis=-1)

    def metrics(scores, batch):
        # Scores that are no numbers are never behind.
        behind = jnp.sum((margins(scores) > 0) + 0.5 * (margins(scores) == 0), axis=-1)
        ahead = scores.shape[1] - 1 - behind
        hit = ahead < _CUTOFF
        found = {
            "ndcg": jnp.where(hit, 1 / jnp.log2(2 + ahead), 0),
            "hit": hit,
            "auc": 1 - ahead / (scores.shape[1] - 1),
            "loss": each(scores, batch),
        }
        return {name: jnp.sum(value * batch.mask) for name, value in found.items()}

    items = model._replace(features=of_items(model.features), head=head, num_features=0)
    return _task(items, each, metrics, 0.0, 1.0, score="ndcg")


TASKS = ("classification", "regression", "rating", "next_token", "multi_label", "ranking")


def _task(
    model: Model,
    each: Callable[[jax.Array, Batch], jax.Array],
    metrics: Callable[[jax.Array, Batch], dict[str, jax.Array]],
    mean: float | np.ndarray,
    std: float | np.ndarray,
    *,
    score: str,
    more_is_better: bool = True,
    num_classes: int = 0,
) -> Task:
    """Makes the task of a network, of `each`: the loss of each example, and of metrics."""

    def standardized(parameters, inputs):
        if model.reads_ids:
            return inputs
        dtype = tree.dtype(parameters)
        return (inputs.astype(dtype) - jnp.asarray(mean, dtype)) / jnp.asarray(std, dtype)

    def features(parameters, inputs, mask=None):
        return model.features(parameters, standardized(parameters, inputs), mask)

    def predict(parameters, inputs, mask=None):
        return model.head(parameters, features(parameters, inputs, mask), mask)

    def losses(parameters, batch, key, train=True):
        return each(predict(parameters, batch.inputs, batch.mask if train else None), batch)

    def loss(parameters, batch, key, train=True):
        return mean_over(losses(parameters, batch, key, train), batch.mask)

    def observe(parameters, batch):
        return model.observe(parameters, standardized(parameters, batch.inputs), batch.mask)

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
        is_statistic=model.is_statistic,
        observe=None if model.observe is None else observe,
        score=score,
        more_is_better=more_is_better,
    )
