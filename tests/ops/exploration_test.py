"""The epsilon-greedy choice: which rows come, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax.ops import exploration

SCORES = jnp.array([0.0, 3, 1, 9, -2, 9, 5])
USABLE = jnp.array([True, True, True, False, True, True, True])
DRAWS = 4000


@pytest.fixture(scope="module")
def chosen():
    """Many choices of rows, `[draws, count]`, for a probability."""

    @jax.jit
    def draw(probability):
        keys = jax.random.split(jax.random.key(5), DRAWS)
        return jax.vmap(lambda key: exploration.choose(key, SCORES, USABLE, 3, probability))(keys)

    return lambda probability: np.asarray(draw(probability))


def test_without_exploration_the_best_usable_rows_come_in_order(chosen):
    assert np.all(chosen(0.0) == [5, 6, 1]) and np.all(chosen(-0.7) == [5, 6, 1])


def test_rows_are_different_and_usable_ones_come_first(chosen):
    for probability in (0.3, 1.0):
        rows = np.sort(chosen(probability), axis=1)
        assert np.all(np.diff(rows, axis=1) > 0) and not np.any(rows == 3)
    all_rows = exploration.choose(jax.random.key(0), SCORES, USABLE, 7, 0.5)
    assert sorted(all_rows.tolist()) == list(range(7)) and all_rows[-1] == 3


def test_full_exploration_is_uniform_without_replacement(chosen):
    for column in chosen(1.0).T:
        shares = np.bincount(column, minlength=7) / DRAWS
        np.testing.assert_allclose(np.delete(shares, 3), 1 / 6, atol=0.03)


def test_each_row_explores_on_its_own(chosen):
    # A row is the best one left unless it explores, and sometimes if it does. With one draw for all
    # rows, as a rule for the whole choice would have it, both would deviate together.
    probability = 0.5
    rows = chosen(probability)
    first = rows[:, 0] != 5
    np.testing.assert_allclose(first.mean(), probability * 5 / 6, atol=0.03)
    after_best = rows[~first]
    second = after_best[:, 1] != 6
    np.testing.assert_allclose(second.mean(), probability * 4 / 5, atol=0.03)
    third = after_best[~second][:, 2] != 1
    np.testing.assert_allclose(third.mean(), probability * 3 / 4, atol=0.04)


def test_equal_scores_are_decided_by_chance():
    keys = jax.random.split(jax.random.key(2), 600)
    rows = jax.vmap(lambda key: exploration.choose(key, jnp.zeros(7), USABLE, 1, 0.0))(keys)
    shares = np.bincount(np.asarray(rows)[:, 0], minlength=7) / 600
    np.testing.assert_allclose(np.delete(shares, 3), 1 / 6, atol=0.07)
    assert shares[3] == 0
