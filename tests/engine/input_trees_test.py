"""Examples whose inputs are a dict of arrays: the same rounds as with the arrays side by side."""

import dataclasses
import functools

import federation
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import core, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.engine.clients.host_examples import HostExamples
from pfljax.models.model import from_flax

SPLIT = 2  # entries of the first array


class Joined(nn.Module):
    """The two arrays side by side."""

    def __call__(self, inputs):
        if not isinstance(inputs, dict):
            return inputs
        return jnp.concatenate([inputs["left"], inputs["right"]], axis=1)


@functools.cache
def task(of_dicts):
    width = federation.NUM_FEATURES
    shape = {"left": (SPLIT,), "right": (width - SPLIT,)} if of_dicts else (width,)
    model = from_flax(Joined(), nn.Dense(federation.NUM_CLASSES), shape)
    mean = {"left": 1.0, "right": np.arange(1.0, width - SPLIT + 1)}
    std = {"left": 2.0, "right": 4.0}
    if not of_dicts:
        mean = np.concatenate([[1.0] * SPLIT, mean["right"]])
        std = np.array([2.0] * SPLIT + [4.0] * (width - SPLIT))
    return tasks.classification(model, num_classes=federation.NUM_CLASSES, mean=mean, std=std)


def halves(inputs):
    return {"left": inputs[:, :SPLIT], "right": inputs[:, SPLIT:]}


def examples():
    whole = federation.examples()
    return dataclasses.replace(whole, inputs=halves(whole.inputs))


@pytest.mark.parametrize("name", ["ditto", "perfedavg", "fedem"])
def test_rounds_and_scores_are_those_of_one_array(name):
    outcomes = []
    for data, of_dicts in ((None, False), (examples(), True)):
        algorithm = ALGORITHMS[name](task(of_dicts), federation.local_training())
        outcomes.append(federation.run(algorithm, data=data, score=task(of_dicts), chunk=2))
    one, other = outcomes
    federation.assert_close(
        (one.server, one.clients, one.scores), (other.server, other.clients, other.scores)
    )


def test_the_program_of_one_array_takes_two_slices_of_it():
    """Inputs and targets: no array is looked at beside them."""
    data = jax.tree.map(jnp.asarray, federation.examples()).of_client(jnp.int32(1))
    program = str(jax.make_jaxpr(lambda data: data.take(jnp.arange(4)))(data))
    assert program.count("gather[") == 2


def test_the_host_copies_each_array():
    whole = federation.examples()
    kept = HostExamples(
        inputs=halves(whole.inputs),
        targets=whole.targets,
        offsets=whole.offsets,
        sizes=whole.sizes,
        num_classes=federation.NUM_CLASSES,
        max_train_size=whole.max_train_size,
        max_eval_size=whole.max_eval_size,
        num_participants=whole.num_participants,
        class_counts=None,
    )
    shard = kept.shard(np.array([2, -1, 5]), ("train",), capacity=20)
    joined = np.concatenate([shard.inputs["left"], shard.inputs["right"]], axis=1)
    for row, client in ((0, 2), (2, 5)):
        begin, size = shard.offsets["train"][row], whole.sizes["train"][client]
        stored = whole.offsets["train"][client]
        np.testing.assert_array_equal(
            joined[begin : begin + size], whole.inputs[stored : stored + size]
        )


def test_names_of_statistics_are_those_of_the_inputs():
    params = task(True).init(jax.random.key(0))
    inputs = jax.tree.map(jnp.asarray, halves(federation.examples().inputs[:3]))
    batch = core.Batch(inputs, jnp.zeros(3, jnp.int32), jnp.ones(3, bool))
    whole = batch._replace(inputs=jnp.asarray(federation.examples().inputs[:3]))
    np.testing.assert_allclose(
        task(True).losses(params, batch, jax.random.key(0)),
        task(False).losses(params, whole, jax.random.key(0)),
        rtol=1e-6,
    )
