"""Kernels as Hadamard products of low-rank kernels: rank, size, initial values, and their task."""

import federation
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import models, tasks
from pfljax.core import tree
from pfljax.ops import hadamard

DENSE, CONVOLUTION = (784, 100), (3, 3, 32, 64)


@pytest.mark.parametrize("fraction, rank, numbers", [
    (0.1, 36, 60192),
    (0.3, 75, 178050),
    (0.5, 103, 296434),
    (0.7, 126, 414792),
    (0.9, 146, 533192),
])  # fmt: skip
def test_factors_of_a_fraction_of_the_kernel(fraction, rank, numbers):
    """The counts of the paper's layer with 256 inputs and outputs."""
    shape = (3, 3, 256, 256)
    assert hadamard.rank_within(shape, fraction) == rank
    assert hadamard.size(shape, rank) == numbers
    factors = jax.eval_shape(
        lambda key: hadamard.init(key, shape, rank, 0.0, jnp.float32), jax.random.key(0)
    )
    assert tree.size(factors) == numbers


@pytest.mark.parametrize("shape", [DENSE, CONVOLUTION])
def test_the_rank_between_full_rank_and_full_size(shape):
    least, most = (hadamard.rank_between(shape, gamma) for gamma in (0.0, 1.0))
    narrow, numbers = min(shape[-2:]), np.prod(shape)
    assert (least - 1) ** 2 < narrow <= least**2
    assert hadamard.size(shape, most) <= numbers < hadamard.size(shape, most + 1)
    middle = hadamard.rank_between(shape, 0.5)
    assert middle in (np.floor((least + most) / 2), np.ceil((least + most) / 2))
    # A kernel so small that no factors are smaller.
    assert [hadamard.rank_between((5, 4), gamma) for gamma in (0.0, 0.5, 1.0)] == [2, 2, 2]


def test_the_rank_of_a_product_is_the_square():
    with jax.enable_x64(True):
        factors = hadamard.init(jax.random.key(0), (20, 30), 3, 0.0, jnp.float64)
        assert np.linalg.matrix_rank(hadamard.compose(factors, 0.0)) == 9
        # A low-rank kernel with as many numbers has rank 6.
        assert tree.size(factors) == 6 * (20 + 30)


@pytest.mark.parametrize("shape", [DENSE, CONVOLUTION])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_an_initial_kernel_has_the_mean_square_of_he(shape, offset):
    rank = hadamard.rank_between(shape, 0.5)
    factors = hadamard.init(jax.random.key(1), shape, rank, offset, jnp.float32)
    square = jnp.mean(hadamard.compose(factors, offset) ** 2)
    np.testing.assert_allclose(square, 2 / np.prod(shape[:-1]), rtol=0.15)


def test_the_task_of_the_factors_is_the_task_of_their_products():
    network = models.MODELS["cnn"]((16, 16, 1), 3)
    task, local = tasks.classification(network, num_classes=3), federation.local_training()
    factored = hadamard.factored(task, local, lambda shape: 2, 1.0)
    params = factored.task.init(jax.random.key(0))
    whole = factored.compose(params)
    shapes = jax.tree.map(jnp.shape, task.init(jax.random.key(0)))
    assert jax.tree.map(jnp.shape, whole) == shapes
    inputs = jax.random.normal(jax.random.key(1), (2, 16, 16, 1))
    np.testing.assert_array_equal(
        factored.task.predict(params, inputs), task.predict(whole, inputs)
    )
    paths = [tuple(part.key for part in path) for path, _ in jax.tree.leaves_with_path(params)]
    second = [path for path in paths if hadamard.is_second(path)]
    kernels = len(paths) - len(second) - len(task.layers)  # each layer has a bias
    assert {path[-1] for path in second} == {"x2", "y2", "t2"} and len(second) == kernels
    assert [path for path in paths if factored.task.is_head(path)] == [
        path for path in paths if path[0] == "head"
    ]


def test_running_statistics_are_observed_with_the_products():
    task = federation.task("mlp_bn")
    local = federation.local_training(observe=task.observe)
    factored = hadamard.factored(task, local, lambda shape: 2, 0.0)
    params = factored.task.init(jax.random.key(0))
    data = jax.tree.map(jnp.asarray, federation.examples()).of_client(jnp.int32(0))
    batch = data.take(jnp.arange(4))
    for observe in (factored.task.observe, factored.local.observe):
        found = observe(params, batch)
        federation.assert_close(found, task.observe(factored.compose(params), batch))
    assert hadamard.factored(task, federation.local_training(), len, 0.0).local.observe is None


def test_which_models_have_kernels():
    assert hadamard.has_kernels({"head": {"kernel": jnp.ones((2, 3))}})
    assert not hadamard.has_kernels({"a": {"kernel": jnp.ones((2, 3, 4))}, "bias": jnp.ones(2)})
