"""Retrieval from the history of ONE client: scores of its documents for a query, and the best ones.

A history is a padded array with a mask `[n]`; documents whose mask is False score minus infinity
and are never retrieved. A query that is itself a document of the history is left out by the mask:
`leave_one_out(mask)[i]` is the mask for document `i`, `earlier(times, mask)[i]` that of the
documents before it. All functions can be traced, and mapped over queries and over clients.

Documents are vectors of features `[n, d]`, or counts of words `[n, V]`, which `count_words` makes
of lists of word ids; the words of large vocabularies are hashed into `V` numbers.

References:
  Robertson, Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009,
  https://doi.org/10.1561/1500000019.
  Qiu, Zhao, Zhang, Bai, Wang, Cheng, Feng, Chua, "Measuring What Makes You Unique: Difference-Aware
  User Modeling for Enhancing LLM Personalization", 2025, https://arxiv.org/abs/2503.02450
  (`comparators`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pfljax.ops import similarity


class Retrieved(NamedTuple):
    """The documents retrieved for a query, the best one first.

    Attributes:
      indices: `[k]` int32, the indices of the documents; those of documents that do not exist are
        arbitrary indices of the history.
      exists: `[k]` bool, False in the last slots if the history has fewer than `k` documents.
    """

    indices: jax.Array
    exists: jax.Array


def count_words(words: jax.Array, vocabulary: int) -> jax.Array:
    """Returns `[n, V]` int32, how often each word occurs in each document.

    Args:
      words: `[n, L]` integers, the word ids of each document; negative ids are padding.
      vocabulary: `V`, larger than all ids.
    """

    slots = jnp.where(words < 0, vocabulary, words)
    counts = jnp.zeros((words.shape[0], vocabulary + 1), jnp.int32)
    return counts.at[jnp.arange(words.shape[0])[:, None], slots].add(1)[:, :vocabulary]


def leave_one_out(mask: jax.Array) -> jax.Array:
    """Returns `[n, n]` bool: for each document of a history, the mask of the other documents."""
    return mask & ~jnp.eye(mask.shape[0], dtype=bool)


def earlier(times: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `[n, n]` bool: for each document of a history, the mask of the earlier documents.

    Args:
      times: `[n]`, the time of each document.
      mask: `[n]` bool.
    """
    return mask & (times < times[:, None])


def bm25(
    query: jax.Array,
    documents: jax.Array,
    mask: jax.Array,
    *,
    k1: float | jax.Array = 1.5,
    b: float | jax.Array = 0.75,
    epsilon: float | jax.Array = 0.25,
) -> jax.Array:
    """Returns `[n]`, the Okapi BM25 scores of a client's documents.

        score_i = sum_v q_v idf_v (k1 + 1) c_iv / (c_iv + k1 (1 - b + b l_i / mean l))
        idf_v = log(n - n_v + 1/2) - log(n_v + 1/2), where negative: epsilon times its mean

    `n_v` is the number of documents that contain the word `v`, `l_i` the length of a document; the
    mean of `idf` is over the words of all documents. A word of most documents would make a document
    worse without the floor. The scores are those of the package rank_bm25.

    Args:
      query: `[V]`, the counts of words of the query.
      documents: `[n, V]`, those of the documents.
      mask: `[n]` bool, True for the documents of the history.
      k1: The saturation of counts, 1.2 to 2; 0 ignores how often a word occurs.
      b: The influence of the lengths of documents, 0 to 1; 0 ignores them.
      epsilon: The floor of `idf`, as a factor of its mean.
    """
    dtype = jnp.result_type(float)
    counts = jnp.where(mask[:, None], documents, 0).astype(dtype)
    size, containing = jnp.sum(mask).astype(dtype), jnp.sum(counts > 0, axis=0)
    known = containing > 0
    idf = jnp.log(size - containing + 0.5) - jnp.log(containing + 0.5)
    mean_idf = jnp.sum(idf * known) / jnp.maximum(jnp.sum(known), 1)
    idf = jnp.where(known, jnp.where(idf < 0, epsilon * mean_idf, idf), 0)
    lengths = jnp.sum(counts, axis=1)
    total = jnp.sum(lengths)
    relative = lengths * size / jnp.where(total > 0, total, 1)
    occurs = counts > 0
    divisor = jnp.where(occurs, counts + k1 * (1 - b + b * relative)[:, None], 1)
    saturated = jnp.where(occurs, (k1 + 1) * counts / divisor, 0)
    # A sum of products, which XLA does not store, also where each query has its own `idf`.
    scores = jnp.sum(saturated * (query * idf), axis=1)
    return jnp.where(mask, scores, -jnp.inf)


def tf_idf(query: jax.Array, documents: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `[n]`, the cosines of a query and a client's documents, words weighted by rarity.

        score_i = cosine(q * idf, c_i * idf);   idf_v = 1 + log((1 + n) / (1 + n_v))

    Words that no document contains are left out of the query. The scores are those of scikit-learn.

    Args:
      query: `[V]`, the counts of words of the query.
      documents: `[n, V]`, those of the documents.
      mask: `[n]` bool, True for the documents of the history.
    """
    counts = jnp.where(mask[:, None], documents, 0).astype(jnp.result_type(float))
    containing = jnp.sum(counts > 0, axis=0)
    idf = 1 + jnp.log((1 + jnp.sum(mask)) / (1 + containing))
    idf = jnp.where(containing > 0, idf, 0)
    return dense(query * idf, counts * idf, mask)


def dense(query: jax.Array, documents: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `[n]`, the cosines of a query's features and those of a client's documents.

    Args:
      query: `[d]`, the features of the query.
      documents: `[n, d]`, those of the documents; the cosine with zeros is 0.
      mask: `[n]` bool, True for the documents of the history.
    """
    cosines = jnp.sum(similarity.unit(documents) * similarity.unit(query), axis=1)
    return jnp.where(mask, cosines, -jnp.inf)


def recent(times: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `[n]`, scores by which the latest documents are retrieved, whatever the query.

    Args:
      times: `[n]`, the time of each document, or its position in the order of time.
      mask: `[n]` bool, True for the documents of the history.
    """
    return jnp.where(mask, times.astype(jnp.result_type(float)), -jnp.inf)


def top_k(scores: jax.Array, k: int) -> Retrieved:
    """Returns the documents with the `k` best scores; of equal scores the first ones.

    Args:
      scores: `[n]`, minus infinity for documents that are not in the history.
      k: Number of documents; a history with fewer leaves slots empty.
    """
    size = min(k, scores.shape[0])
    best, indices = jax.lax.top_k(scores, size)
    empty = (0, k - size)
    return Retrieved(jnp.pad(indices.astype(jnp.int32), empty), jnp.pad(best > -jnp.inf, empty))


def comparators(
    own: jax.Array, others: jax.Array, mask: jax.Array, *, clusters: int = 5, steps: int = 10
) -> Retrieved:
    """Returns those documents of other users on an item that represent how they differ from one.

    The user's own document and the others are clustered by k-means. The cluster of the user's own
    document is left out, and each other cluster is represented by the document of another user that
    is nearest to its mean. The first mean is the own document, and each further one the document
    farthest from all means so far, so that nothing is random.

    Args:
      own: `[d]`, the features of the user's document.
      others: `[n, d]`, those of the documents of others on the same item.
      mask: `[n]` bool, True for real documents.
      clusters: Number of clusters, the own one included.
      steps: Number of steps of k-means.

    Returns:
      `[clusters - 1]` documents, one for each other cluster; a cluster without any is an empty
      slot, whatever its position.
    """
    points = jnp.concatenate([own[None], others])
    real = jnp.concatenate([jnp.ones(1, bool), mask])

    def gaps(means):
        return jnp.sum((points[:, None] - means) ** 2, axis=-1)

    def add(number, means):
        far = jnp.min(gaps(means), axis=1)
        return means.at[number].set(points[jnp.argmax(jnp.where(real, far, -jnp.inf))])

    def move(_, means):
        members = jax.nn.one_hot(jnp.argmin(gaps(means), axis=1), clusters, dtype=means.dtype)
        members = members * real[:, None]
        sizes = jnp.sum(members, axis=0)[:, None]
        return jnp.where(sizes > 0, members.T @ points / jnp.where(sizes > 0, sizes, 1), means)

    # All means start at the own document, so that those that are not chosen yet change nothing.
    means = jax.lax.fori_loop(1, clusters, add, jnp.repeat(own[None], clusters, axis=0))
    means = jax.lax.fori_loop(0, steps, move, means)
    distances = gaps(means)
    cluster = jnp.argmin(distances, axis=1)
    belongs = mask[:, None] & (cluster[1:, None] == jnp.arange(clusters))
    nearest = jnp.argmin(jnp.where(belongs, distances[1:], jnp.inf), axis=0)
    # The others in ascending order, without the cluster of the own document.
    left = jnp.arange(clusters - 1)
    left = left + (left >= cluster[0])
    return Retrieved(nearest[left].astype(jnp.int32), jnp.any(belongs, axis=0)[left])
