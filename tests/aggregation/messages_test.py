"""Uploads as parts with weights, and back; bits counted from shapes."""

import cohorts
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import core
from pfljax.aggregation import messages
from pfljax.errors import UserError


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


def test_a_client_says_values_and_weights():
    tree, plain = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}, jnp.array([5.0])
    upload = (core.weighted(tree, 4), plain)
    message = messages.of_client(upload)
    same(message.values, (tree, plain))
    assert message.weights[0] == 4 and message.weights[1] is None
    same(messages.to_client(message, upload), upload)


def test_what_has_no_weight_has_no_value():
    upload = core.weighted({"a": jnp.array([1.0, -2.0])}, 0)
    np.testing.assert_array_equal(messages.of_client(upload).values[0]["a"], 0)
    same(messages.to_client(messages.of_client(upload), upload), upload)


def test_a_weight_for_each_class_and_a_cohort():
    means, counts = jnp.arange(6.0).reshape(3, 2) + 1, jnp.array([2.0, 0.0, 3.0])
    upload = core.Weighted(means * counts[:, None], counts)
    expected = np.where(np.array([[True], [False], [True]]), means, 0)
    np.testing.assert_allclose(messages.of_client(upload).values[0], expected, rtol=1e-6)
    same(messages.to_client(messages.of_client(upload), upload), upload)
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), upload, upload)
    np.testing.assert_allclose(
        messages.of_client(stacked).values[0], np.stack([expected, expected]), rtol=1e-6
    )


def test_totals_and_public_terms_pass_unchanged():
    upload = (core.weighted(jnp.array([2.0]), 3), messages.Public((jnp.array(7.0),)))
    message = messages.of_total(upload)
    assert len(message.values) == 1 and message.values[0] == 6
    doubled = messages.to_total(message._replace(values=(2 * message.values[0],)), upload)
    assert doubled[0].value == 12 and doubled[0].weight == 3 and doubled[1].terms == (7.0,)


def test_bits_from_shapes():
    upload, each = cohorts.uploads()[0], jnp.zeros(3, jnp.int8)
    size = messages.size(upload, each)
    assert size.numbers == 12 + 3 + 5
    assert size.bits == 32 * (20 + 1) + 8 * 3
    with jax.enable_x64(True):
        double = core.weighted(jnp.zeros(4, jnp.float64), 1)
        assert messages.size(double, ()).bits == 64 * 5


def test_weights_for_each_class_are_refused_in_one_sentence():
    by_class = core.Weighted(jnp.zeros((3, 2)), jnp.zeros(3))
    with pytest.raises(UserError, match="'top_k'.*as it keeps what was left out; leave it out"):
        message = messages.of_client((by_class, jnp.zeros(2)))
        messages.require_scalar_weights(message, "top_k", "keeps what was left out")
    messages.require_scalar_weights(messages.of_client(cohorts.uploads()[0]), "top_k", "")
