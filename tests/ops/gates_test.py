"""Blocks of a model, the knapsack, and a gate's scores."""

import itertools

import federation
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import models, tasks
from pfljax.ops import gates


def test_blocks_of_a_network_with_convolutions():
    """Groups of outputs, in the order of the layers, kernels first; none of running statistics."""
    network = models.MODELS["resnet8"]((6, 5, 2), 3, norm="batch")
    task = tasks.classification(network, num_classes=3)
    blocks = gates.divide(task, 5)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    trained = [
        leaf.size
        for path, leaf in jax.tree.leaves_with_path(shapes)
        if not task.is_statistic(tuple(name.key for name in path))
    ]
    assert blocks.num_weights == sum(trained) and len(blocks.parts) == len(trained)
    assert [part.path for part in blocks.parts if part.group == 0] == [
        ("head", "kernel"),
        ("head", "bias"),
    ]
    assert blocks.parts[0].path[-1] == "kernel" and blocks.parts[-1].path == ("head", "bias")
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    spread = gates.multiply(blocks, jnp.arange(1.0, blocks.num_blocks + 1), params)
    part = next(part for part in blocks.parts if len(part.shape) == 4)
    array = spread
    for name in part.path:
        array = array[name]
    in_order = np.transpose(array, (3, 2, 0, 1)).ravel()
    numbers = part.start + 1 + np.arange(in_order.size) // part.length
    np.testing.assert_array_equal(in_order, numbers)
    counts = np.bincount(numbers)[part.start + 1 :]
    np.testing.assert_array_equal(counts, blocks.sizes[part.start : part.start + part.count])
    statistics = [
        leaf
        for path, leaf in jax.tree.leaves_with_path(spread)
        if task.is_statistic(tuple(name.key for name in path))
    ]
    assert statistics and all(np.all(leaf == 1) for leaf in statistics)


def small_blocks():
    return gates.divide(federation.task(), 3)


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9, 1.0])
def test_kept_blocks_fit_and_none_of_a_higher_score_would(density):
    blocks = small_blocks()
    scores = jax.random.uniform(jax.random.key(0), (blocks.num_blocks,))
    kept = np.asarray(gates.keep(blocks, scores, gates.budget(blocks, density)))
    assert np.all(kept[blocks.first])
    sizes, tenths = blocks.sizes, np.round(10 * np.asarray(scores))
    left_out = np.round((1 - density) * sizes.sum())
    most = max(sizes[blocks.first].sum(), sizes.sum() - left_out)
    assert sizes[kept].sum() <= most
    assert (density < 1) or np.all(kept)
    for block in np.flatnonzero(~kept):
        others = kept & ~blocks.first
        before = (tenths > tenths[block]) | (
            (tenths == tenths[block]) & (np.arange(len(kept)) < block)
        )
        used = sizes[blocks.first].sum() + sizes[others & before].sum()
        assert used + sizes[block] > most


def test_the_budget_of_the_authors_code_is_of_the_other_blocks():
    blocks = small_blocks()
    others = blocks.sizes[~blocks.first].sum()
    found = np.asarray(gates.budget_of_others(blocks, 0.3))
    np.testing.assert_array_equal(found, [np.round(0.3 * others), 0])


def test_padding_and_the_order_of_a_batch_do_not_matter():
    gate = gates.init(jax.random.key(0), (3, 2, 2), 4, jnp.float32)
    inputs = jax.random.normal(jax.random.key(1), (5, 3, 2, 2))
    padded = jnp.concatenate([inputs[::-1], 100 + inputs[:2]])
    mask = jnp.arange(7) < 5
    found = gates.scores(gate, padded, mask)[:5]
    wanted = gates.scores(gate, inputs, jnp.ones(5, bool))[::-1]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    federation.assert_close(
        gates.observe(gate, padded, mask), gates.observe(gate, inputs, jnp.ones(5, bool))
    )


@pytest.mark.parametrize("shape, rows", list(itertools.product([(1,), (2, 3)], [0, 1])))
def test_scores_and_gradients_are_finite_for_constant_inputs(shape, rows):
    gate = gates.init(jax.random.key(0), shape, 2, jnp.float32)
    inputs, mask = jnp.full((2, *shape), 255.0), jnp.arange(2) < rows

    def total(gate):
        return jnp.sum(gates.scores(gate, inputs, mask))

    found = jax.value_and_grad(total)(gate), gates.observe(gate, inputs, mask)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    alone = gates.mean_scores(gate, jnp.zeros(2), jnp.int32(0))
    np.testing.assert_allclose(alone, 0.5)
