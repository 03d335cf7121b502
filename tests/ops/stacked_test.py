"""Rows of many trees in one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pfljax import core
from pfljax.ops import stacked

TREE = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}


def test_repeating_reading_and_prepending_rows():
    three = stacked.repeat(TREE, 3)
    np.testing.assert_array_equal(three["a"], [[1, 2]] * 3)
    longer = stacked.prepend({"a": jnp.array([7.0, 8.0]), "b": jnp.array(9.0)}, three)
    np.testing.assert_array_equal(longer["b"], [9, 3, 3, 3])
    np.testing.assert_array_equal(stacked.take(longer, 0)["a"], [7, 8])
    np.testing.assert_array_equal(stacked.take(longer, jnp.array([1, 0]))["b"], [3, 9])


def test_mixing_keeps_the_dtype_of_each_leaf():
    rows = {"half": jnp.array([[2.0], [4.0]], jnp.float16), "single": jnp.array([1.0, 3.0])}
    mixed = stacked.mix(jnp.array([0.5, 0.5]), rows)
    assert mixed["half"].dtype == jnp.float16 and mixed["single"].dtype == jnp.float32
    np.testing.assert_array_equal(mixed["half"], [3])
    np.testing.assert_array_equal(mixed["single"], 2)


def test_mixing_by_rows_and_cosines():
    rows = {"a": jnp.array([[3.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), "b": jnp.array([4.0, 0.0, 0.0])}
    mixed = stacked.mix(jnp.array([[1.0, 0.0, 1.0], [0.0, 2.0, 0.5]]), rows)
    np.testing.assert_allclose(mixed["a"], [[4, 1], [0.5, 0.5]])
    cosines = stacked.cosines(rows)
    np.testing.assert_allclose(np.diag(cosines), [1, 0, 1], rtol=1e-6)  # a row of zeros has none
    np.testing.assert_allclose(cosines[0, 2], 3 / (5 * np.sqrt(2)), rtol=1e-6)
    np.testing.assert_array_equal(cosines[1], 0)


def test_inner_products_with_each_row():
    rows = {"a": jnp.array([[3.0, 0.5], [0.0, -1.0]]), "b": jnp.array([4.0, 2.0])}
    np.testing.assert_allclose(stacked.products(rows, TREE), [3 + 1 + 12, -2 + 6])


def test_a_padding_slot_writes_nothing():
    cohort = core.Cohort(jnp.array([2, -1, 0]), jnp.array([5, 0, 5]), 3)
    new = {"a": jnp.array([[1.0], [2.0], [3.0]])}
    written = stacked.update_rows({"a": jnp.zeros((3, 1))}, cohort, new)
    np.testing.assert_array_equal(written["a"], [[3], [0], [1]])
    np.testing.assert_array_equal(stacked.update_rows(jnp.zeros(3, bool), cohort, True), [1, 0, 1])


def test_mean_losses_and_distances_of_each_model():
    rows = jnp.array([9.0, 0.0, 1.0, 2.0, 9.0])
    data = core.ClientData(rows, rows, jnp.int32(1), jnp.int32(3), jnp.zeros(1), 3)
    context = core.Context(jax.random.key(0), jnp.int32(0), jnp.int32(1))
    local = core.LocalTraining(optax.sgd(0.1), batch_size=2, epochs=4, drop_remainder=True)
    task = core.Task(*[None] * 8, num_classes=0)._replace(
        losses=lambda model, batch, key, train: (model["w"] - batch.inputs) ** 2
    )
    models = {"w": jnp.array([0.0, 1.0])}
    mean = stacked.mean_losses(task, models, data, context, local)
    np.testing.assert_allclose(mean, [5 / 3, 2 / 3], rtol=1e-6)
    no_examples = data.rows(0, 0)
    np.testing.assert_array_equal(stacked.mean_losses(task, models, no_examples, context, local), 0)
    distances = stacked.squared_distances(models, {"w": jnp.array(3.0)})
    np.testing.assert_array_equal(distances, [9, 4])
