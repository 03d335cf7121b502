"""Means under a mask, and masks of what is largest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pfljax.core import client_data
from pfljax.ops import masks


def test_the_mean_over_a_mask():
    values = jnp.array([1.0, 2.0, 6.0])
    assert client_data.mean_over(values, jnp.array([True, False, True])) == 3.5
    assert client_data.mean_over(values, jnp.zeros(3, bool)) == 0


@pytest.mark.parametrize("share", [0.0, 0.34, 0.5, 0.7, 1.0])
def test_the_largest_entries(share):
    scores = jnp.array([[0.2, 0.0, 0.9], [0.0, 0.5, 0.1]])
    mask = masks.largest(scores, share)
    count = min(int(share * 6), 4)  # an entry that did not move is not critical
    least = np.array([1, 0.9, 0.5, 0.2, 0.1], np.float32)[count]
    np.testing.assert_array_equal(mask, np.asarray(scores) >= least)


def test_an_empty_mask_overlaps_with_none():
    none, some = jnp.zeros((1, 4), bool), jnp.array([[True, False, True, False]])
    assert not np.any(masks.largest(jnp.zeros(4), 0.5))
    stacked = {"a": jnp.concatenate([none, some, ~some, some])}
    overlap = masks.overlaps(stacked, stacked)
    # An empty mask has no overlap with any, and is left out by `any_entry`.
    wanted = [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 1, 0, 1]]
    np.testing.assert_array_equal(overlap, wanted)
    elsewhere = {"b": jnp.zeros((4, 2, 2), bool)}
    np.testing.assert_array_equal(masks.any_entry({**stacked, **elsewhere}), [False, *[True] * 3])
    assert not np.any(masks.any_entry(elsewhere))


@pytest.mark.parametrize(
    "fraction, target, added",
    [
        (0.25, 0.5, [2]),
        (0.4, 0.5, [2, 5]),
        (0.5, 0.5, [2, 3, 5, 6]),  # 2.5 of the five others is rounded to 2; equal scores, both
        (1.0, 0.5, [2, 3, 5, 6]),  # an entry of score 0 is left out
        (0.0, 0.5, []),
        (0.4, 0.1, []),
    ],
)
def test_a_mask_grows_by_the_largest_of_the_other_entries(fraction, target, added):
    mask = jnp.array([True, False, False, False, True, False, False])
    scores = jnp.array([9.0, 0.0, 4.0, 1.0, 9.0, 3.0, 1.0])
    wanted = np.asarray(mask).copy()
    wanted[added] = True
    np.testing.assert_array_equal(masks.grown(mask, scores, fraction, target), wanted)


def test_an_optimizer_moves_the_entries_of_a_mask_and_the_others_in_turn():
    mask = {"a": jnp.array([True, False]), "b": jnp.array(False)}
    optimizer = masks.alternating(optax.adam(0.1), mask, jnp.int32(2))
    params = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    state, moved = optimizer.init(params), []
    for _ in range(5):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        moved.append([bool(u) for u in (*updates["a"], updates["b"])])
    first, others = [True, False, False], [False, True, True]
    assert moved == [first, first, others, others, first]
