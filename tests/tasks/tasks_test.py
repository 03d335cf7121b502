"""Losses and metrics of the tasks, with paper and pencil."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import models, tasks
from pfljax.core import Batch
from pfljax.errors import UserError
from pfljax.models.model import from_flax


class Nothing(nn.Module):
    """Outputs are the inputs, so that they can be chosen."""

    def __call__(self, x):
        return x


class Scale(nn.Module):
    """One parameter, 1, since a task without any has no dtype."""

    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.ones, ())


def identity(shape):
    return from_flax(Nothing(), Scale(), shape)


def score(task, batch):
    parameters = task.init(jax.random.key(0))
    losses = task.losses(parameters, batch, jax.random.key(0))
    loss = task.loss(parameters, batch, jax.random.key(0))
    return losses, loss, task.metrics(task.predict(parameters, batch.inputs), batch)


def test_regression_trains_in_standard_units_and_reports_in_those_of_the_targets():
    task = tasks.regression(identity((1,)), mean=1.0, std=2.0, target_mean=10.0, target_std=5.0)
    inputs = jnp.array([[3.0], [1.0], [7.0]])  # standardized: 1, 0, 3, meaning 15, 10, 25
    batch = Batch(inputs, jnp.array([20.0, 10.0, 0.0]), jnp.array([True, True, False]))
    losses, loss, metrics = score(task, batch)
    np.testing.assert_allclose(losses, [1, 0, 25])
    np.testing.assert_allclose(loss, 0.5)
    expected = {"mse": 25, "mae": 5, "loss": 1}
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected)
    assert (task.score, task.more_is_better, task.num_classes) == ("mse", False, 0)


def test_next_token_counts_tokens_and_leaves_the_padding_out():
    task = tasks.next_token(identity((3, 4)), num_classes=4)
    logits = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4])) * jnp.ones((3, 3, 1))
    targets = jnp.array([[3, 1, 0], [2, 0, 0], [3, 3, 3]])
    batch = Batch(logits, targets, jnp.array([True, True, False]))
    losses, loss, metrics = score(task, batch)
    expected = -np.log([(0.4 * 0.2) ** 0.5, 0.3])
    np.testing.assert_allclose(losses[:2], expected, rtol=1e-6)
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-6)
    expected_metrics = {"accuracy": 1, "count": 3, "loss": -np.log(0.4 * 0.2 * 0.3)}
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        expected_metrics
    )


def test_a_text_without_targets_costs_nothing():
    task = tasks.next_token(identity((2, 3)), num_classes=3)
    batch = Batch(jnp.ones((1, 2, 3)), jnp.zeros((1, 2), jnp.int32), jnp.array([True]))
    parameters = task.init(jax.random.key(0))
    loss, gradient = jax.value_and_grad(task.loss)(parameters, batch, jax.random.key(0))
    assert loss == 0 and gradient["head"]["scale"] == 0


def test_invalid_labels_are_reported_individually():
    task = tasks.multi_label(identity((4,)))
    inputs = jnp.array([[2.0, -1.0, 3.0, -4.0], [1.0, 1.0, 1.0, 1.0]])
    batch = Batch(inputs, jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]]), jnp.array([True, False]))
    losses, loss, metrics = score(task, batch)
    expected = np.mean(np.log1p(np.exp([-2.0, 1.0, -3.0, -4.0])))
    np.testing.assert_allclose(losses[0], expected, rtol=1e-6)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert metrics["accuracy"] == 0.75


def test_a_ranking_puts_the_chosen_item_before_others():
    task = tasks.ranking(identity((1,)))
    scores = [[2.0, 1.0, 3.0, 2.0], [5.0, 1.0, 1.0, 1.0], [0.0, 9.0, 9.0, 9.0]]
    inputs = jnp.array(scores)[..., None]
    batch = Batch(inputs, jnp.zeros(3, jnp.int32), jnp.array([True, True, False]))
    losses, loss, metrics = score(task, batch)
    expected = [np.mean(np.log1p(np.exp([-1.0, 1.0, 0.0]))), np.log1p(np.exp(-4.0))]
    np.testing.assert_allclose(losses[:2], expected, rtol=1e-5)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    # One item and the half of another stand before the first one, nothing before the second.
    expected_metrics = {
        "ndcg": 1 / np.log2(3.5) + 1,
        "hit": 2,
        "auc": 0.5 + 1,
        "loss": sum(expected),
    }
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        expected_metrics, rel=1e-5
    )
    assert (task.score, task.more_is_better, task.num_features) == ("ndcg", True, 0)


def test_a_ranking_shows_ten_items():
    task = tasks.ranking(identity((1,)))
    ahead = jnp.where(jnp.arange(20) < jnp.array([[9], [10]]), 1.0, -1.0)
    inputs = jnp.concatenate([jnp.zeros((2, 1)), ahead], axis=1)[..., None]
    batch = Batch(inputs, jnp.zeros(2, jnp.int32), jnp.array([True, True]))
    _, _, metrics = score(task, batch)
    np.testing.assert_allclose(metrics["hit"], 1)
    np.testing.assert_allclose(metrics["ndcg"], 1 / np.log2(11), rtol=1e-6)
    np.testing.assert_allclose(metrics["auc"], 11 / 20 + 10 / 20, rtol=1e-6)
    lost = Batch(jnp.full((1, 5, 1), jnp.nan), jnp.zeros(1, jnp.int32), jnp.array([True]))
    _, _, metrics = score(task, lost)
    assert metrics["auc"] == 0


def test_a_ranking_refuses_batch_normalization():
    with pytest.raises(UserError, match="batch normalization"):
        tasks.ranking(models.mlp_bn((2,), 1, widths=(2,)))


def test_inputs_are_standardized_column_by_column_and_ids_not_at_all():
    mean, std = np.array([1.0, 2.0]), np.array([2.0, 4.0])
    task = tasks.classification(identity((2,)), num_classes=2, mean=mean, std=std)
    out = task.predict(task.init(jax.random.key(0)), jnp.array([[3.0, 2.0]]))
    np.testing.assert_allclose(out, [[1.0, 0.0]])
    arguments = {"vocabulary": (3, 5), "width": 2}
    ratings = models.MODELS["matrix_factorization"]((2,), 1, **arguments)
    ids = jnp.array([[0, 4], [2, 1]], jnp.int32)
    plain, scaled = (tasks.regression(ratings, mean=m) for m in (0.0, 9.0))
    parameters = plain.init(jax.random.key(0))
    outputs = plain.predict(parameters, ids)
    np.testing.assert_array_equal(outputs, scaled.predict(parameters, ids))
    items, user = parameters["body"], parameters["head"]
    vectors, biases = (items[name]["embedding"][ids[:, 1]] for name in ("vectors", "biases"))
    np.testing.assert_allclose(outputs, vectors @ user["vector"] + biases + user["bias"], rtol=1e-5)
