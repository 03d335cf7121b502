"""The best weights on the simplex, against all supports tried one by one."""

import itertools

import jax
import numpy as np
import pytest

from pfljax.ops import simplex


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_the_projection_is_the_closest_point_of_the_simplex(precision):
    draw = np.random.default_rng(1)
    with jax.enable_x64(precision is np.float64):
        for scale in (0.01, 1.0, 100.0):
            point = (scale * draw.normal(size=6)).astype(precision)
            found = np.asarray(simplex.project(point), np.float64)
            assert found.min() >= 0
            np.testing.assert_allclose(found.sum(), 1, rtol=1e-4)
            # At the optimum no mass gains by moving from one entry to another.
            slope = found - point
            assert np.all(slope[found > 0].max() <= slope + 1e-4 * scale)
        inside = np.array([0.2, 0.5, 0.3], precision)
        np.testing.assert_allclose(simplex.project(inside), inside, rtol=1e-6)
        np.testing.assert_array_equal(simplex.project(np.array([7.0, 0.0], precision)), [1, 0])


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_the_weights_are_the_best_on_the_simplex(precision):
    draw = np.random.default_rng(0)
    with jax.enable_x64(precision is np.float64):
        solve = jax.jit(simplex.minimize)
        for trial in range(20):
            spread = draw.normal(size=(6, draw.integers(1, 9))) + draw.normal()
            matrix = spread @ spread.T + np.diag(draw.uniform(0.01, 1, 6))
            allowed = draw.random(6) < 0.8
            best, least = np.zeros(6), np.inf
            for support in itertools.product([False, True], repeat=6):
                chosen = np.array(support)
                if not chosen.any() or (chosen & ~allowed).any():
                    continue
                entries = np.linalg.solve(matrix[chosen][:, chosen], np.ones(chosen.sum()))
                weights = np.zeros(6)
                weights[chosen] = entries / entries.sum()
                if np.all(entries >= 0) and weights @ matrix @ weights < least:
                    best, least = weights, weights @ matrix @ weights
            found = solve(matrix.astype(precision), allowed)
            assert found.dtype == precision
            tolerance = 1e-3 if precision is np.float32 else 1e-10
            np.testing.assert_allclose(found, best, rtol=0, atol=tolerance, err_msg=str(trial))
        everywhere = np.ones(3, bool)
        np.testing.assert_allclose(solve(np.zeros((3, 3), precision), everywhere), 1 / 3, rtol=1e-6)
        np.testing.assert_array_equal(solve(np.eye(3, dtype=precision), ~everywhere), 0)


def test_small_entries_are_left_out_and_the_others_make_up_for_them():
    matrix, everything = np.diag(np.float32([1, 2, 50])), np.ones(3, bool)
    weights = np.array([1, 1 / 2, 1 / 50]) / (1 + 1 / 2 + 1 / 50)
    np.testing.assert_allclose(simplex.minimize(matrix, everything), weights, rtol=1e-4)
    kept = simplex.minimize(matrix, everything, 0.02)
    np.testing.assert_allclose(kept, [2 / 3, 1 / 3, 0], rtol=1e-4)
