"""Scores of a client's documents: rank_bm25's, scikit-learn's, and the selection of documents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer

from pfljax.ops import retrieval

VOCABULARY = 9
DOCUMENTS = [
    [0, 0, 0, 6, 7, 3, 5],
    [2, 8, 6, 0, 7],
    [5, 0, 7, 2, 0],
    [1, 0],
    [4, 4],
    [3, 0],
    [8, 4, 4, 4],
]
QUERIES = [[8, 6, 3, 7, 1], [5, 6, 7, 4, 3], [2, 3, 4, 6, 8]]
# `BM25Okapi(DOCUMENTS).get_scores(query)` of rank_bm25 0.2.2; the `idf` of word 0 has the floor.
OF_RANK_BM25 = [
    [
        *(1.3377286456166682, 1.613143366773041, 0.22174802495374069, 1.8719196622894814),
        *(0.0, 1.0065413111033237, 0.7755318298664953),
    ],
    [
        *(1.9146486653954025, 0.9174456958633909, 0.9174456958633909, 0.0),
        *(1.3326039893480623, 1.0065413111033237, 1.3020396776657674),
    ],
    [
        *(1.1538400395574686, 2.0870930127289506, 0.6956976709096502, 0.0),
        *(1.3326039893480623, 1.0065413111033237, 2.0775715075322627),
    ],
]
# The first query with k1=2, b=.3, epsilon=.6; and a document against the six others.
WITH_OTHER_CONSTANTS = [
    *(1.5720441727151293, 1.7259505952187082, 0.23725487984561067, 1.622586100714038),
    *(0.0, 0.8724733085998072, 0.7826598797733564),
]
WITHOUT_THE_FIRST = [
    *(-np.inf, 2.013967872082718, 2.254361627949285, 0.7073670661816464),
    *(0.0, 2.2918585102429403, 0.0),
]
WITHOUT_THE_FIFTH = [0.0, 0.0, 0.0, 0.0, -np.inf, 0.0, 4.374690182256771]


def padded(lists, length=8):
    """Lists of word ids as rows, filled up with -1."""
    return np.array([words + [-1] * (length - len(words)) for words in lists])


def history(padding=3):
    """The counts of the documents, rows of padding with counts of anything, and the mask."""
    counts = retrieval.count_words(jnp.asarray(padded(DOCUMENTS)), VOCABULARY)
    rest = jnp.full((padding, VOCABULARY), 7, counts.dtype)
    mask = np.arange(len(DOCUMENTS) + padding) < len(DOCUMENTS)
    return jnp.concatenate([counts, rest]), jnp.asarray(mask)


def queries():
    return retrieval.count_words(jnp.asarray(padded(QUERIES)), VOCABULARY)


def test_count_words():
    counts = retrieval.count_words(jnp.asarray(padded(DOCUMENTS)), VOCABULARY)
    wanted = [np.bincount(words, minlength=VOCABULARY) for words in DOCUMENTS]
    np.testing.assert_array_equal(counts, wanted)


def test_bm25_is_that_of_rank_bm25():
    with jax.enable_x64(True):
        documents, mask = history()
        score = jax.jit(jax.vmap(retrieval.bm25, in_axes=(0, None, None)))
        found = score(queries(), documents, mask)
        np.testing.assert_allclose(found[:, :7], OF_RANK_BM25, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(found[:, 7:], -np.inf)
        other = retrieval.bm25(queries()[0], documents, mask, k1=2.0, b=0.3, epsilon=0.6)
        np.testing.assert_allclose(other[:7], WITH_OTHER_CONSTANTS, rtol=1e-6, atol=1e-6)
        assert np.max(np.abs(other[:7] - found[0, :7])) > 0.1
    single = retrieval.bm25(queries()[0], *history())
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single[:7], OF_RANK_BM25[0], rtol=1e-5, atol=1e-5)


def test_a_query_of_the_history_is_left_out():
    with jax.enable_x64(True):
        documents, mask = history()
        scores = jax.vmap(retrieval.bm25, in_axes=(0, None, 0))
        found = scores(documents, documents, retrieval.leave_one_out(mask))
        np.testing.assert_allclose(found[0, :7], WITHOUT_THE_FIRST, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found[4, :7], WITHOUT_THE_FIFTH, rtol=1e-6, atol=1e-6)
        with_itself = retrieval.bm25(documents[0], documents, mask)
        assert np.isfinite(with_itself[0])


def test_tf_idf_is_that_of_scikit_learn():
    vectorizer = TfidfVectorizer(analyzer=lambda words: words)
    known = vectorizer.fit_transform(DOCUMENTS).toarray()
    wanted = vectorizer.transform([[8, 6, 6, 1, 77], *QUERIES[1:]]).toarray() @ known.T
    given = queries().at[0].set(jnp.zeros(VOCABULARY, jnp.int32).at[jnp.array([8, 6, 1])].add(1))
    given = given.at[0, 6].add(1)
    found = jax.jit(jax.vmap(retrieval.tf_idf, in_axes=(0, None, None)))(given, *history())
    np.testing.assert_allclose(found[:, :7], wanted, rtol=1e-5, atol=1e-6)
    # A word that no document has is left out of the query, as scikit-learn leaves out word 77.
    documents, mask = history()
    wide = jnp.pad(documents, ((0, 0), (0, 1)))
    unknown = jnp.pad(given, ((0, 0), (0, 1)), constant_values=3)
    again = jax.vmap(retrieval.tf_idf, in_axes=(0, None, None))(unknown, wide, mask)
    np.testing.assert_allclose(again, found, rtol=1e-5)


@pytest.mark.parametrize("score", [retrieval.bm25, retrieval.tf_idf, retrieval.dense])
def test_an_empty_history_has_no_document(score):
    documents, mask = history()
    found = score(queries()[0], documents, jnp.zeros_like(mask))
    np.testing.assert_array_equal(found, -np.inf)
    assert not retrieval.top_k(found, 3).exists.any()
    of_zeros = score(queries()[0], jnp.zeros_like(documents), mask)
    np.testing.assert_array_equal(of_zeros[:7], 0)


def test_dense_and_recent():
    draw = np.random.default_rng(0)
    query, documents = draw.normal(size=4), draw.normal(size=(6, 4))
    mask = jnp.arange(6) < 5
    cosines = documents @ query / np.linalg.norm(documents, axis=1) / np.linalg.norm(query)
    found = retrieval.dense(jnp.asarray(query), jnp.asarray(documents), mask)
    np.testing.assert_allclose(found[:5], cosines[:5], rtol=1e-5)
    times = jnp.array([3, 1, 9, 4, 2, 99])
    latest = retrieval.top_k(retrieval.recent(times, mask), 2)
    np.testing.assert_array_equal(latest.indices, [2, 3])
    before = retrieval.earlier(times, mask)
    np.testing.assert_array_equal(before[0], [False, True, False, False, True, False])
    assert not before[1].any()


def test_top_k():
    scores = jnp.array([0.5, 2.0, -jnp.inf, 2.0])
    best = jax.jit(retrieval.top_k, static_argnums=1)(scores, 6)
    np.testing.assert_array_equal(best.indices[:3], [1, 3, 0])
    np.testing.assert_array_equal(best.exists, [True, True, True, False, False, False])
    assert retrieval.top_k(scores, 0).indices.shape == (0,)


def test_comparators_represent_the_other_clusters():
    draw = np.random.default_rng(1)
    centres = np.array([[0, 0], [9, 0], [0, 9], [9, 9]])
    others = np.repeat(centres, 6, axis=0) + draw.normal(size=(24, 2))
    own, mask = np.array([9.3, 0.2]), np.arange(26) < 24
    padded = np.concatenate([others, [[50, 50], [-50, 3]]])
    select = jax.jit(retrieval.comparators, static_argnames=("clusters", "steps"))
    found = select(jnp.asarray(own), jnp.asarray(padded), jnp.asarray(mask), clusters=4)
    means = KMeans(4, n_init=10, random_state=0).fit(np.concatenate([[own], others]))
    wanted = set()
    for cluster in set(range(4)) - {means.labels_[0]}:
        members = np.flatnonzero(means.labels_[1:] == cluster)
        gaps = np.linalg.norm(others[members] - means.cluster_centers_[cluster], axis=1)
        wanted.add(int(members[gaps.argmin()]))
    assert set(found.indices.tolist()) == wanted and found.exists.all()
    # With a single other document, one cluster has a document, and the other slots are empty.
    few = select(jnp.asarray(own), jnp.asarray(padded), jnp.arange(26) < 1, clusters=4)
    assert few.exists.sum() == 1 and few.indices[few.exists].tolist() == [0]
