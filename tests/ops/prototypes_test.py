"""Sums over classes, the means that they give, and the pull to them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pfljax.core import Batch, ClientData, Context, LocalTraining, Task
from pfljax.ops import prototypes

FEATURES = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
BATCH = Batch(None, jnp.array([0, 2, 0, 2]), jnp.array([True, True, True, False]))


def test_the_mean_of_each_class_leaves_padding_out():
    none = prototypes.none(3, 2, jnp.float32)
    total = prototypes.add_batch(prototypes.no_sums(none), FEATURES, BATCH)
    np.testing.assert_array_equal(total.counts, [2, 0, 1])
    np.testing.assert_array_equal(total.means, [[3, 4], [0, 0], [3, 4]])
    renewed = prototypes.renew(none, total.weighted(True))
    np.testing.assert_array_equal(renewed.seen, [True, False, True])
    np.testing.assert_array_equal(renewed.means, total.means)


def test_weights_by_examples_or_equal():
    total = prototypes.ClassSums(jnp.array([[6.0], [0.0]]), jnp.array([3.0, 0.0]))
    np.testing.assert_array_equal(total.weighted(True).weight, [3, 0])
    alike = total.weighted(False)
    np.testing.assert_allclose(alike.weight, [1, 0])
    np.testing.assert_allclose(alike.value, [[2], [0]])


def test_a_class_that_is_lacking_keeps_its_prototype():
    before = prototypes.Prototypes(jnp.array([[1.0], [2.0], [0.0]]), jnp.array([True, True, False]))
    total = prototypes.ClassSums(jnp.array([[8.0], [0.0], [0.0]]), jnp.array([2.0, 0.0, 0.0]))
    after = prototypes.renew(before, total.weighted(True))
    np.testing.assert_array_equal(after.means, [[4], [2], [0]])
    np.testing.assert_array_equal(after.seen, [True, True, False])


def test_the_pull_is_to_classes_that_have_a_prototype():
    means = jnp.array([[0.0, 0.0], [9.0, 9.0], [9.0, 9.0]])
    pull = jax.value_and_grad(
        lambda z, seen: prototypes.pull(prototypes.Prototypes(means, seen), z, BATCH)
    )
    value, slope = pull(FEATURES, jnp.array([True, False, False]))
    np.testing.assert_allclose(value, ((1 + 4) / 2 + (25 + 36) / 2) / 3)
    np.testing.assert_allclose(slope[0], FEATURES[0] / 3)
    np.testing.assert_array_equal(slope[1], 0)
    assert pull(FEATURES, jnp.zeros(3, bool))[0] == 0


def test_the_sums_of_a_clients_examples():
    data = ClientData(FEATURES, BATCH.targets, jnp.int32(1), jnp.int32(3), jnp.zeros(3), 3)
    context = Context(jax.random.key(0), jnp.int32(0), jnp.int32(1))
    local = LocalTraining(optax.sgd(0.1), batch_size=2, drop_remainder=True).one_pass()
    task = Task(*[None] * 8, num_classes=3)._replace(features=lambda model, x: model * x)
    none = prototypes.none(3, 2, jnp.float32)
    total, squares = prototypes.of_client(task, 2.0, none, data, context, local)
    np.testing.assert_array_equal(total.counts, [1, 0, 2])
    np.testing.assert_array_equal(total.means, [[10, 12], [0, 0], [10, 12]])
    assert squares == 4 * (9 + 16 + 25 + 36 + 49 + 64)


def test_scores_of_classes_without_a_prototype_are_below_the_others():
    similarities, otherwise = jnp.array([[3.0, 9.0, 1.0]]), jnp.array([[7.0, 8.0, 6.0]])
    some = prototypes.scores(similarities, jnp.array([True, False, True]), otherwise)
    np.testing.assert_array_equal(some, [[3, 0, 1]])
    none = prototypes.scores(similarities, jnp.zeros(3, bool), otherwise)
    np.testing.assert_array_equal(none, otherwise)
