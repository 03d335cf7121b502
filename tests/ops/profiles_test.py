"""Profiles of a client: centroid, label histogram, deviation, extractive summary, salient words."""

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.ops import profiles

DRAW = np.random.default_rng(0)
FEATURES = DRAW.normal(size=(9, 4)).astype(np.float32)
MASK = np.arange(9) < 7
TARGETS = np.array([0, 2, 2, 1, 2, 0, 2, 1, 1])


def test_profile_is_the_centroid_with_the_label_histogram():
    found = profiles.profile(*map(jnp.asarray, (FEATURES, TARGETS, MASK)), 4)
    np.testing.assert_allclose(found[:4], FEATURES[:7].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found[4:], np.array([2, 1, 4, 0]) / 7, rtol=1e-6)
    with_prior = profiles.label_histogram(jnp.asarray(TARGETS), jnp.asarray(MASK), 4, 0.5)
    np.testing.assert_allclose(with_prior, np.array([2.5, 1.5, 4.5, 0.5]) / 9, rtol=1e-6)
    empty = profiles.profile(jnp.asarray(FEATURES), jnp.asarray(TARGETS), jnp.zeros(9, bool), 4)
    np.testing.assert_array_equal(empty, 0)
    # Padding has any content, NaN included.
    padded = np.where(MASK[:, None], FEATURES, np.nan)
    again = profiles.centroid(jnp.asarray(padded), jnp.asarray(MASK))
    np.testing.assert_allclose(again, found[:4])


def test_deviation_is_the_mean_z_score_over_items_with_disagreement():
    labels, means = np.array([1.0, 0, 1, 1, 9]), np.array([0.5, 0.25, 1, 0.2, 0])
    deviations, mask = np.array([0.5, 0.4, 0, 0.4, 1]), np.arange(5) < 4
    found = profiles.deviation(*map(jnp.asarray, (labels, means, deviations, mask)))
    np.testing.assert_allclose(found, (1 - 0.625 + 2) / 3, rtol=1e-6)


def marginal_relevance(features, k, diversity):
    """The indices of a summary, in loops."""
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    middle = features.mean(axis=0)
    relevance = units @ middle / np.linalg.norm(middle)
    chosen = []
    for _ in range(min(k, len(features))):
        scores = {}
        for i in set(range(len(features))) - set(chosen):
            likeness = max((units[i] @ units[j] for j in chosen), default=0.0)
            scores[i] = (1 - diversity) * relevance[i] - diversity * likeness
        chosen.append(max(scores, key=scores.get))
    return chosen


def test_summary_is_near_the_centroid_and_diverse():
    select = jax.jit(profiles.summary, static_argnums=2)
    chosen = {}
    for diversity in (0.0, 0.7):
        found = select(jnp.asarray(FEATURES), jnp.asarray(MASK), 4, diversity=diversity)
        chosen[diversity] = found.indices.tolist()
        assert chosen[diversity] == marginal_relevance(FEATURES[:7], 4, diversity)
        assert found.exists.all()
    assert chosen[0.0] != chosen[0.7]
    all_of_them = select(jnp.asarray(FEATURES), jnp.asarray(MASK), 9, diversity=0.3)
    assert all_of_them.exists.tolist() == [True] * 7 + [False] * 2
    assert sorted(all_of_them.indices[:7].tolist()) == list(range(7))


def test_salient_words_are_frequent_here_and_rare_elsewhere():
    documents = np.array([[3, 1, 0, 2], [3, 0, 0, 0], [9, 9, 9, 9]])
    frequencies, population = np.array([90, 3, 5, 1]), 100
    found = profiles.salient_words(
        jnp.asarray(documents), jnp.arange(3) < 2, jnp.asarray(frequencies), population, 4
    )
    counts = documents[:2].sum(axis=0)
    scores = counts / counts.sum() * (1 + np.log((1 + population) / (1 + frequencies)))
    wanted = [i for i in np.argsort(-scores) if counts[i]]
    assert found.indices[:3].tolist() == wanted and found.exists.tolist() == [True] * 3 + [False]
    assert wanted[0] == 3  # although word 0 is the most frequent one
