"""Halves of clusters, against all halves tried one by one."""

import halving
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax.ops import clustering


@pytest.mark.parametrize("seed", range(4))
def test_halves_have_the_smallest_possible_largest_similarity(seed):
    draw = np.random.default_rng(seed)
    updates = draw.normal(size=(7, 3))
    updates /= np.linalg.norm(updates, axis=1, keepdims=True)
    similarity, cluster = updates @ updates.T, np.array([0, 1, 0, 0, 1, 1, 0])
    ids = draw.permutation(7)
    together = cluster[:, None] == cluster
    with jax.enable_x64(True):
        found = np.asarray(clustering.in_first_half(*map(jnp.asarray, (similarity, together, ids))))
    for c in range(2):
        members = sorted(np.flatnonzero(cluster == c), key=lambda slot: ids[slot])
        here, there = halving.best_halves(similarity, members)
        assert found[here].all() and not found[there].any()
