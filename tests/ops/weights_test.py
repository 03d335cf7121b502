"""Flattened params: rows, principal directions as in scikit-learn, coefficients, ridge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import decomposition, linear_model

from pfljax.ops import weights


def draw(count, width, rank, seed=0):
    """Returns rows of a rank, with a mean, and different variances along all directions."""
    rng = np.random.default_rng(seed)
    scales = 3.0 ** -np.arange(rank)[:, None]
    return rng.normal(size=(count, rank)) @ (scales * rng.normal(size=(rank, width))) + 5


def test_rows_have_the_order_of_ravel_pytree_and_come_back():
    rng = np.random.default_rng(0)
    stacked = {
        "head": {"kernel": jnp.array(rng.normal(size=(4, 3, 2))), "bias": jnp.ones((4, 2))},
        "body": [jnp.array(rng.normal(size=4)), jnp.array(rng.normal(size=(4, 5)))],
    }
    rows, unflatten = weights.flatten(stacked)
    for number in range(4):
        one = jax.tree.map(lambda leaf, number=number: leaf[number], stacked)
        np.testing.assert_array_equal(rows[number], jax.flatten_util.ravel_pytree(one)[0])
    jax.tree.map(np.testing.assert_array_equal, unflatten(rows), stacked)
    some = unflatten(rows[2:])
    np.testing.assert_array_equal(some["head"]["kernel"], stacked["head"]["kernel"][2:])


def test_standardized_columns_have_mean_0_and_variance_1_and_constant_ones_stay_finite():
    rows = jnp.array(draw(20, 4, 4)).at[:, 2].set(7.0)
    scale = weights.standardization(rows)
    standard = scale.apply(rows)
    np.testing.assert_allclose(jnp.mean(standard, axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.std(standard, axis=0), [1, 1, 0, 1], atol=1e-5)
    np.testing.assert_allclose(scale.undo(standard), rows, rtol=1e-5)


@pytest.mark.parametrize(("count", "width"), [(7, 30), (30, 7)])
def test_the_basis_is_that_of_scikit_learn(count, width):
    with jax.enable_x64(True):
        rows = draw(count, width, 6)
        basis = weights.pca(jnp.array(rows), 4)
        oracle = decomposition.PCA(4, svd_solver="full").fit(rows)
        # scikit-learn has another rule for signs.
        signs = np.sign(np.sum(np.array(basis.directions) * oracle.components_, axis=1))
        np.testing.assert_allclose(basis.mean, oracle.mean_, rtol=1e-6)
        np.testing.assert_allclose(
            basis.directions, signs[:, None] * oracle.components_, rtol=1e-6, atol=1e-8
        )
        np.testing.assert_allclose(basis.std**2, oracle.explained_variance_, rtol=1e-6)
        found = basis.project(jnp.array(rows))
        np.testing.assert_allclose(
            found * basis.std, signs * oracle.transform(rows), rtol=1e-6, atol=1e-8
        )
        np.testing.assert_allclose(
            basis.expand(found), oracle.inverse_transform(oracle.transform(rows)), rtol=1e-6
        )
        assert np.all(np.max(basis.directions, axis=1) == np.max(np.abs(basis.directions), axis=1))


def test_directions_without_variance_are_left_out():
    for rank, size, kept in ((3, 10, 3), (3, 2, 2), (9, 10, 5)):
        basis = weights.pca(jnp.array(draw(6, 40, rank), jnp.float32), size)
        assert basis.directions.shape == (kept, 40) and basis.std.shape == (kept,)
        assert np.all(basis.std > 0)
    rows = jnp.array(draw(6, 40, 3), jnp.float32)
    whole = weights.pca(rows, 6)
    np.testing.assert_allclose(whole.expand(whole.project(rows)), rows, rtol=1e-4)
    same = weights.pca(jnp.ones((4, 5)), 3)
    assert same.directions.shape == (0, 5)
    np.testing.assert_array_equal(same.expand(same.project(jnp.ones((2, 5)))), 1)


def test_the_first_directions_are_a_smaller_basis():
    rows = jnp.array(draw(9, 12, 6), jnp.float32)
    small = weights.pca(rows, 2)
    np.testing.assert_allclose(weights.pca(rows, 5).first(2).directions, small.directions, 1e-4)


def test_fitted_coefficients_minimize_each_client_s_own_loss():
    """With the squared distance to a row, the fitted coefficients are those of the projection."""
    rows = jnp.array(draw(9, 12, 6), jnp.float32)
    basis = weights.pca(rows, 3)
    start = jnp.zeros((9, 3))

    def losses(found):
        return jnp.sum((found - rows) ** 2, axis=1) / basis.std[0] ** 2

    found = weights.fit_coefficients(losses, basis, start, 0.05, 400)
    np.testing.assert_allclose(found, basis.project(rows), atol=2e-2)

    def of_three(found):  # other clients in the batch change nothing
        return jnp.sum((found - rows[:3]) ** 2, axis=1) / basis.std[0] ** 2

    alone = weights.fit_coefficients(of_three, basis, start[:3], 0.05, 400)
    np.testing.assert_allclose(found[:3], alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(weights.fit_coefficients(losses, basis, start, 0.05, 0), start)


def test_ridge_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    conditions, targets = rng.normal(2, 1, size=(8, 12)), rng.normal(-3, 1, size=(8, 2))
    with jax.enable_x64(True):
        found = weights.ridge(jnp.array(conditions), jnp.array(targets), 0.3)
        oracle = linear_model.Ridge(alpha=0.3 * 8).fit(conditions, targets)
        np.testing.assert_allclose(found.kernel.T, oracle.coef_, rtol=1e-8)
        np.testing.assert_allclose(found.apply(conditions), oracle.predict(conditions), rtol=1e-8)
