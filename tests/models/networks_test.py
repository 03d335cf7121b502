"""Networks: sizes, initialization, heads, and equality with plain flax, alone and under vmap."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import models
from pfljax.core import Batch
from pfljax.errors import UserError
from pfljax.models.layers import max_pool

COUNTS = {
    ("logistic", (28, 28, 1), 10): (7_850, 7_850),
    ("mlp", (28, 28, 1), 10): (79_510, 1_010),
    ("cnn", (28, 28, 1), 10): (582_026, 5_130),
    ("cnn", (32, 32, 3), 10): (878_538, 5_130),
    ("cnn", (32, 32, 3), 100): (924_708, 51_300),
}


@pytest.mark.parametrize("name, shape, classes", COUNTS)
def test_parameter_counts_of_model_and_head(name, shape, classes):
    model = models.MODELS[name](shape, classes)
    parameters = jax.eval_shape(model.init, jax.random.key(0))
    paths = jax.tree_util.tree_leaves_with_path(parameters)
    total = sum(leaf.size for _, leaf in paths)
    head = sum(leaf.size for path, leaf in paths if model.is_head(tuple(k.key for k in path)))
    assert (total, head) == COUNTS[name, shape, classes]


def test_initialization_is_uniform_within_one_over_the_root_of_fan_in():
    parameters = models.cnn((28, 28, 1), 10).init(jax.random.key(0))
    body = parameters["body"]
    for layer, fan_in in {
        "Conv_0": 25,
        "Conv_1": 800,
        "Dense_0": 1024,
    }.items():
        bound = fan_in**-0.5
        for leaf in body[layer].values():
            assert jnp.max(jnp.abs(leaf)) <= bound
        kernel = body[layer]["kernel"]
        np.testing.assert_allclose(jnp.std(kernel), bound / 3**0.5, rtol=0.1)
        assert jnp.max(jnp.abs(body[layer]["bias"])) > 0.5 * bound


def test_an_image_too_small_for_the_cnn_is_refused():
    with pytest.raises(UserError, match="8x8"):
        models.cnn((8, 8, 1), 10)


class PlainCnn(nn.Module):
    """The same network of flax's own layers."""

    @nn.compact
    def __call__(self, x):
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (5, 5), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(512)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


def test_loss_and_gradient_equal_plain_flax_also_with_weights_per_client():
    model = models.cnn((28, 28, 1), 10)
    task = models.classification(model, num_classes=10, mean=127.5, std=127.5)
    draw = np.random.default_rng(0)
    images = jnp.asarray(draw.integers(0, 256, (3, 4, 28, 28, 1)).astype(np.uint8))
    labels = jnp.asarray(draw.integers(0, 10, (3, 4)))
    mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
    parameters = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 3))

    def ours(parameters, images, labels, mask):
        return task.loss(parameters, Batch(images, labels, mask), jax.random.key(0))

    def plain(parameters, images, labels, mask):
        body = parameters["body"]
        named = {
            "Conv_0": body["Conv_0"],
            "Conv_1": body["Conv_1"],
            "Dense_0": body["Dense_0"],
            "Dense_1": parameters["head"],
        }
        logits = PlainCnn().apply({"params": named}, (images.astype(jnp.float32) - 127.5) / 127.5)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
        return (losses * mask).sum() / mask.sum()

    args = (parameters, images, labels, mask)
    together = jax.vmap(jax.value_and_grad(ours))(*args)
    expected = jax.lax.map(lambda one: jax.value_and_grad(plain)(*one), args)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), together, expected
    )
    alone = jax.lax.map(lambda one: jax.value_and_grad(ours)(*one), args)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), alone, expected
    )


def test_features_and_head_make_the_prediction():
    for name in models.MODELS:
        model = models.MODELS[name]((28, 28, 1), 10)
        task = models.classification(model, num_classes=10)
        parameters = model.init(jax.random.key(0))
        images = jnp.ones((2, 28, 28, 1))
        features = task.features(parameters, images)
        assert features.ndim == 2
        np.testing.assert_array_equal(
            task.head(parameters, features), task.predict(parameters, images)
        )


def test_pooling_sends_the_gradient_to_the_first_of_equal_entries():
    x = jnp.array([[0.0, 0.0], [0.0, 0.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: max_pool(x).sum())(x)
    np.testing.assert_array_equal(gradient.reshape(2, 2), [[1, 0], [0, 0]])
    x = jnp.array([[0.0, 1.0], [2.0, 2.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: max_pool(x).sum())(x)
    np.testing.assert_array_equal(gradient.reshape(2, 2), [[0, 0], [1, 0]])
    draw = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    np.testing.assert_array_equal(max_pool(draw), nn.max_pool(draw, (2, 2), (2, 2)))
    ours, plain = (
        jax.grad(lambda x, pool=pool: jnp.sum(pool(x) ** 2))(draw)
        for pool in (max_pool, lambda x: nn.max_pool(x, (2, 2), (2, 2)))
    )
    np.testing.assert_allclose(ours, plain, rtol=1e-6)
