"""Tasks of which only some arrays are trained: with every method, and what is refused."""

import functools

import federation
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import models, tasks
from pfljax.core import Batch, tree
from pfljax.core.params import split_params
from pfljax.engine.accounting import traffic
from pfljax.errors import UserError
from pfljax.models import adapters

SHAPE, CLASSES = (federation.NUM_FEATURES,), federation.NUM_CLASSES
METHODS = {
    "local": {},
    "fedavg": {},
    "fedavg_ft": {},
    "fedper": {},
    "fedrep": {"head_epochs": 1},
    "ditto": {},
    "apfl": {},
    "pfedme": {},
    "pfedhn": {"hidden": 4, "layers": 1},
}


@functools.cache
def whole():
    network = models.mlp(SHAPE, CLASSES, widths=(4,))
    task = tasks.classification(
        adapters.attach(network, adapters.lora(rank=2)), num_classes=CLASSES
    )
    return task, network, network.init(jax.random.key(5))


def is_trained(path):
    return whole()[0].is_adapter(path) or whole()[0].is_head(path)


@functools.cache
def frozen():
    task, _, base = whole()
    return tasks.freeze(task, base, is_trained)


def batch():
    draw = np.random.default_rng(0)
    inputs = jnp.asarray(draw.normal(size=(6, *SHAPE)), jnp.float32)
    return Batch(inputs, jnp.asarray(draw.integers(0, CLASSES, 6)), jnp.ones(6, bool))


def test_it_starts_with_the_base_bit_by_bit():
    task, (_, network, base) = frozen(), whole()
    params = task.init(jax.random.key(1))
    plain = tasks.classification(network, num_classes=CLASSES)
    np.testing.assert_array_equal(
        task.predict(params, batch().inputs), plain.predict(base, batch().inputs)
    )
    key = jax.random.key(0)
    np.testing.assert_array_equal(
        task.losses(params, batch(), key), plain.losses(base, batch(), key)
    )
    found, expected = task.evaluate(params, batch(), key), plain.evaluate(base, batch(), key)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_its_params_are_the_trainable_arrays():
    task, (_, _, base) = frozen(), whole()
    params = task.init(jax.random.key(1))
    assert {name: set(arrays) for name, arrays in params["body"].items()} == {
        "Dense_0": {"lora_a", "lora_b"}
    }
    jax.tree.map(np.testing.assert_array_equal, params["head"], base["head"])
    drawn = tasks.freeze(whole()[0], {"body": base["body"]}, is_trained)
    assert federation.differ(drawn.init(jax.random.key(1))["head"], base["head"])
    assert task.layers == (("body", "Dense_0"), ("head",))
    plain = tasks.classification(whole()[1], num_classes=CLASSES)
    assert tasks.freeze(plain, base, plain.is_head).layers == (("head",),)


def test_gradients_are_those_of_the_whole_task():
    task, (whole_task, _, base) = frozen(), whole()
    params = task.init(jax.random.key(1))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    joined = whole_task.init(jax.random.key(0))
    joined["body"]["Dense_0"] = {**base["body"]["Dense_0"], **params["body"]["Dense_0"]}
    joined["head"] = params["head"]
    key = jax.random.key(0)
    expected = split_params(jax.grad(whole_task.loss)(joined, batch(), key), is_trained)[0]
    federation.assert_close(jax.grad(task.loss)(params, batch(), key), expected)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_the_adapter_alone(name):
    task = frozen()
    method = federation.ALGORITHMS[name](task, federation.local_training(), **METHODS[name])
    outcome = federation.run(method, score=task)
    before = outcome.untrained_scores["personal"]["test"]["loss"].sum()
    assert outcome.scores["personal"]["test"]["loss"].sum() < before
    held = jax.tree_util.tree_leaves_with_path((outcome.server, outcome.clients))
    names = {part.key for path, _ in held for part in path if hasattr(part, "key")}
    assert "lora_a" in names
    matrix = whole()[2]["body"]["Dense_0"]["kernel"].shape
    assert not any(leaf.shape[-2:] == matrix for _, leaf in held), "a frozen matrix in a state"


def test_traffic_is_that_of_the_adapter():
    task = frozen()
    method = federation.ALGORITHMS["fedavg"](task, federation.local_training())
    size = tree.num_bytes(task.init(jax.random.key(0)))
    assert size == 4 * (5 * 2 + 2 * 4 + 4 * 3 + 3), "the adapter and the head"
    server = method.init_server(None, jax.random.key(0))
    found = traffic.count(method, server, (), federation.examples())
    assert found == traffic.Traffic(upload=size + 4, download=size)  # with the client's weight


def test_refusals():
    task, _, base = whole()
    with pytest.raises(UserError, match="No array of the model is trainable"):
        tasks.freeze(task, base, lambda path: False)
    with pytest.raises(UserError, match="base lacks the frozen array 'body/Dense_0/bias'"):
        tasks.freeze(task, {"body": {}, "head": base["head"]}, is_trained)
    wider = models.mlp(SHAPE, CLASSES, widths=(5,)).init(jax.random.key(0))
    with pytest.raises(UserError, match="of another model"):
        tasks.freeze(task, wider, is_trained)
    with pytest.raises(UserError, match="initial array 'head/kernel'.* of another model"):
        tasks.freeze(
            task, {"body": base["body"], "head": {**base["head"], "kernel": 0}}, is_trained
        )
    with pytest.raises(UserError, match="needs a body before the model's head"):
        federation.ALGORITHMS["fedperfix"](frozen(), federation.local_training())
    with_statistics = federation.task("mlp_bn")
    with pytest.raises(UserError, match="batch normalization"):
        tasks.freeze(
            with_statistics, with_statistics.init(jax.random.key(0)), with_statistics.is_head
        )
