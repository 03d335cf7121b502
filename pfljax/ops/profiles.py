"""Profiles of ONE client: short summaries of its history, which stand for all its documents.

Like the functions of `retrieval`, these take padded arrays with a mask `[n]`, and can be traced and
mapped over clients.

References:
  Richardson, Zhang, Gillespie, Kar, Singh, Raeesy, Khan, Sethy, "Integrating Summarization and
  Retrieval for Enhanced Personalization via Large Language Models", 2023,
  https://arxiv.org/abs/2310.20081 (a summary beside the retrieved documents).
  Zhang, "Guided Profile Generation Improves Personalization with LLMs", 2024,
  https://arxiv.org/abs/2409.13093 (a profile in place of the documents).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.ops import retrieval, similarity
from pfljax.ops.retrieval import Retrieved


def centroid(features: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `[d]`, the mean of the features `[n, d]` of a client's documents, or zero."""
    total = jnp.sum(jnp.where(mask[:, None], features, 0), axis=0)
    return total / jnp.maximum(jnp.sum(mask), 1)


def label_histogram(
    targets: jax.Array, mask: jax.Array, num_classes: int, prior: jax.Array | float = 0.0
) -> jax.Array:
    """Returns `[C]`, the fractions of the labels of a client.

        h_c = (n_c + prior_c) / (n + sum_c prior_c)

    Args:
      targets: `[n]` integers, the labels.
      mask: `[n]` bool, True for the examples of the client.
      num_classes: `C`.
      prior: `[C]` or one number for all classes, added to the counts; without it, all fractions of
        a client without examples are zero.
    """
    ones = jax.nn.one_hot(targets, num_classes) * mask[:, None]
    counts = jnp.sum(ones, axis=0) + prior
    total = jnp.sum(counts)
    return counts / jnp.where(total > 0, total, 1)


def profile(
    features: jax.Array, targets: jax.Array, mask: jax.Array, num_classes: int
) -> jax.Array:
    """Returns `[d + C]`, the profile vector of a client: its centroid and its label histogram."""
    histogram = label_histogram(targets, mask, num_classes)
    return jnp.concatenate([centroid(features, mask), histogram])


def deviation(
    labels: jax.Array, means: jax.Array, deviations: jax.Array, mask: jax.Array
) -> jax.Array:
    """Returns `[]`, how a client's labels deviate from those of all clients on the same items.

        b = mean_i (y_i - mean_i) / deviation_i

    Items on which all agree are left out. This is the input of HuBi-Formula.

    Args:
      labels: `[n]`, the client's labels as numbers.
      means: `[n]`, the mean label of each item over all clients.
      deviations: `[n]`, the standard deviation of the labels of each item.
      mask: `[n]` bool, True for the examples of the client.
    """
    counted = mask & (deviations > 0)
    gaps = jnp.where(counted, (labels - means) / jnp.where(counted, deviations, 1), 0)
    return jnp.sum(gaps) / jnp.maximum(jnp.sum(counted), 1)


def summary(
    features: jax.Array, mask: jax.Array, k: int, *, diversity: float | jax.Array = 0.3
) -> Retrieved:
    """Returns an extractive summary: documents near the centroid of all, and unlike each other.

    The documents are chosen one after the other (maximal marginal relevance):

        i = argmax (1 - diversity) cosine(z_i, centroid) - diversity max_j cosine(z_i, z_j)

    over the documents j that are already chosen.

    Args:
      features: `[n, d]`, the features of the documents.
      mask: `[n]` bool, True for the documents of the client.
      k: Number of documents; a client with fewer leaves slots empty.
      diversity: Weight of the similarity to the chosen documents, 0 to 1; 0 ranks by the centroid.
    """
    relevance = retrieval.dense(centroid(features, mask), features, mask)
    cosines = similarity.cosines(features, features)

    def choose(number, state):
        indices, exists, left, similar = state
        # Without a chosen document there is nothing to be unlike.
        penalty = jnp.where(number > 0, similar, 0)
        scores = jnp.where(left, (1 - diversity) * relevance - diversity * penalty, -jnp.inf)
        best = jnp.argmax(scores).astype(jnp.int32)
        return (
            indices.at[number].set(best),
            exists.at[number].set(left[best]),
            left.at[best].set(False),
            jnp.maximum(similar, cosines[best]),
        )

    start = (
        *(jnp.zeros(k, jnp.int32), jnp.zeros(k, bool)),
        *(mask, jnp.full(mask.shape, -jnp.inf, cosines.dtype)),
    )
    indices, exists, _, _ = jax.lax.fori_loop(0, k, choose, start)
    return Retrieved(indices, exists)


def salient_words(
    documents: jax.Array, mask: jax.Array, frequencies: jax.Array, population: jax.Array, k: int
) -> Retrieved:
    """Returns the words that distinguish a client's documents from those of all clients.

        score_v = c_v / sum_u c_u * (1 + log((1 + population) / (1 + frequency_v)))

    Args:
      documents: `[n, V]`, the counts of words of the client's documents.
      mask: `[n]` bool, True for the documents of the client.
      frequencies: `[V]`, the number of documents of all clients that contain each word.
      population: `[]`, the number of documents of all clients.
      k: Number of words; slots are empty if the client uses fewer.
    """
    counts = jnp.sum(jnp.where(mask[:, None], documents, 0), axis=0)
    total = jnp.maximum(jnp.sum(counts), 1)
    rarity = 1 + jnp.log((1 + population) / (1 + frequencies))
    return retrieval.top_k(jnp.where(counts > 0, counts / total * rarity, -jnp.inf), k)
