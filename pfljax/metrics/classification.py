"""Metrics of a client's logits, for classes or for labels.

Arguments are, for `n` rows of which some are padding: `logits` `[n, C]`; `targets`, `[n]` integers
for classes, or `[n, C]`, each 0 or 1, for labels; `mask` `[n]` bool, False for padding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.metrics import masked

_BINS = 15


def _positives(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `[n, C]` bool, the class or the labels of each real example."""
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, logits.shape[-1])
    return (targets > 0) & mask[:, None]


def _log_odds(logits: jax.Array) -> jax.Array:
    """Returns `log p_c / (1 - p_c)`, `[n, C]`, of the softmax `p`, without saturation at 0 or 1.

        x_c - log sum over k != c of exp x_k

    A difference of sums would lose all digits for the largest logit only, whose sum is taken apart.
    """
    top = jnp.max(logits, axis=-1, keepdims=True)
    is_top = jnp.arange(logits.shape[-1]) == jnp.argmax(logits, axis=-1, keepdims=True)
    below = jnp.where(is_top, 0, jnp.exp(logits - top))
    without_one = 1 + jnp.sum(below, axis=-1, keepdims=True) - below
    without_top = jnp.where(is_top, -jnp.inf, logits)
    rest = jax.nn.logsumexp(without_top, axis=-1, keepdims=True)
    return logits - jnp.where(is_top, rest, top + jnp.log(without_one))


def _binary_auc(scores: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """Returns `[]`, the fraction of pairs in which the positive has the larger score.

    Args:
      scores: `[n]`; equal ones count half.
      positive: `[n]` bool.
      negative: `[n]` bool; rows that are neither are padding.

    Returns:
      The area under the ROC curve; NaN without a positive or without a negative.
    """
    num_negatives = jnp.sum(negative)
    ordered = jnp.sort(jnp.where(negative, scores, jnp.inf))
    below = jnp.searchsorted(ordered, scores, side="left")
    not_above = jnp.searchsorted(ordered, scores, side="right")
    # An infinite score is not above the padding, which is not counted.
    ranks = jnp.minimum(below, num_negatives) + jnp.minimum(not_above, num_negatives)
    return masked.mean(ranks / (2 * num_negatives), positive)


def auc(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The area under the ROC curve, one class against the rest, averaged over the client's classes.

        AUC_c = mean over positives i and negatives j of [s_ic > s_jc] + [s_ic = s_jc] / 2

    Scores `s` are the softmax probabilities, or the logits of labels. It is exact, by ranks. Only
    classes of which the client has examples count, and labels that some of its examples have and
    others have not.

    Returns:
      `[]`; NaN for a client with fewer than two classes.
    """
    scores = _log_odds(logits) if targets.ndim == 1 else logits
    positives = _positives(logits, targets, mask)

    def of_class(column):
        scores, positive = column
        return _binary_auc(scores, positive, mask & ~positive)

    return jnp.nanmean(jax.lax.map(of_class, (scores.T, positives.T)))


def macro_f1(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of F1 over the classes that the client has, or that are predicted for its examples.

        F1_c = 2 TP_c / (positives_c + predicted_c)

    A class is predicted if its logit is the largest, a label if its logit is positive.

    Returns:
      `[]`; NaN without examples.
    """
    predicted = logits if targets.ndim > 1 else jnp.argmax(logits, axis=-1)
    found = _positives(logits, predicted, mask)
    positives = _positives(logits, targets, mask)
    correct = jnp.sum(found & positives, axis=0)
    return jnp.nanmean(2 * correct / (jnp.sum(found, axis=0) + jnp.sum(positives, axis=0)))


def balanced_accuracy(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of the accuracies on the examples of each class that the client has.

    Returns:
      `[]`; NaN without examples.
    """
    positives = _positives(logits, targets, mask)
    correct = jnp.argmax(logits, axis=-1) == targets
    hits = jnp.sum(positives & correct[:, None], axis=0)
    return jnp.nanmean(hits / jnp.sum(positives, axis=0))


def ece(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The expected calibration error, with 15 bins of equal width.

        sum over bins b of  n_b / n |accuracy_b - confidence_b|

    The confidence of an example is its largest softmax probability; bin b holds the confidences
    in (b / 15, (b + 1) / 15].

    Returns:
      `[]`; NaN without examples.

    References:
      Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017,
      https://arxiv.org/abs/1706.04599.
    """
    confidence = jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1)
    correct = jnp.argmax(logits, axis=-1) == targets
    bins = jnp.clip(jnp.ceil(_BINS * confidence).astype(jnp.int32) - 1, 0, _BINS - 1)
    gaps = jnp.where(mask, correct - confidence, 0)
    # The number of examples of a bin cancels.
    of_bins = jax.ops.segment_sum(gaps, jnp.where(mask, bins, 0), num_segments=_BINS)
    return jnp.sum(jnp.abs(of_bins)) / jnp.sum(mask)


def brier(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The squared error of the predicted probabilities.

        mean over examples of sum over classes c of (p_c - [y = c])^2     (from 0 to 2)

    For labels it is the mean over labels instead of the sum (from 0 to 1).

    Returns:
      `[]`; NaN without examples.
    """
    positives = _positives(logits, targets, mask)
    if targets.ndim == 1:
        errors = jnp.sum((jax.nn.softmax(logits, axis=-1) - positives) ** 2, axis=-1)
    else:
        errors = jnp.mean((jax.nn.sigmoid(logits) - positives) ** 2, axis=-1)
    return masked.mean(errors, mask)


def nll(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of -log softmax(logits)_y, in nats.

    Returns:
      `[]`; NaN without examples.
    """
    chosen = jnp.where(mask, targets, 0)[:, None]
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), chosen, axis=-1)[:, 0]
    return masked.mean(losses, mask)
