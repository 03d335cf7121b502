"""Items that several examples share: the same rounds as with a copy of the item in each example."""

import dataclasses
import functools

import federation
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import data
from pfljax.algorithms import ALGORITHMS
from pfljax.data import ServerExamples
from pfljax.engine.clients.host_examples import HostExamples
from pfljax.errors import UserError
from pfljax.training.study import placement

NUM_ITEMS = 12


@functools.cache
def both():
    """The clients' examples with items, and with copies of them."""
    whole = federation.examples()
    draw = np.random.default_rng(3)
    numbers = draw.integers(0, NUM_ITEMS, len(whole.targets)).astype(np.int32)
    items = draw.normal(size=(NUM_ITEMS, federation.NUM_FEATURES)).astype(np.float32)
    shared = dataclasses.replace(whole, inputs=numbers, items=items)
    return shared, dataclasses.replace(whole, inputs=items[numbers])


@pytest.mark.parametrize("name", ["ditto", "fedem"])
def test_rounds_and_scores_are_those_of_copies(name):
    algorithm = ALGORITHMS[name](federation.task(), federation.local_training())
    one, other = (
        federation.run(algorithm, data=each, score=federation.task(), chunk=2) for each in both()
    )
    federation.assert_close(
        (one.server, one.clients, one.scores), (other.server, other.clients, other.scores)
    )


def test_several_items_in_an_example():
    shared, _ = both()
    pairs = dataclasses.replace(shared, inputs=np.stack([shared.inputs, shared.inputs[::-1]], 1))
    batch = jax.tree.map(jnp.asarray, pairs).of_client(jnp.int32(1)).take(jnp.array([0, 2]))
    rows = pairs.offsets["train"][1] + np.array([0, 2])
    np.testing.assert_array_equal(batch.inputs, shared.items[pairs.inputs[rows]])


def test_the_host_copies_the_items_of_a_cohort():
    shared, copies = both()
    fields = ("inputs", "targets", "offsets", "sizes", "max_train_size", "max_eval_size")
    shards = []
    for examples in (shared, copies):
        host = HostExamples(
            **{name: getattr(examples, name) for name in fields},
            num_classes=federation.NUM_CLASSES,
            num_participants=8,
            class_counts=None,
            items=examples.items,
        )
        shards.append(host.shard(np.array([4, -1, 2]), ("train",), host.capacity(3, ("train",))))
    one, other = shards
    assert one.items is None
    for client in (0, 2):
        indices = jnp.arange(other.sizes["train"][client])
        batches = [
            jax.tree.map(jnp.asarray, shard).of_client(jnp.int32(client)).take(indices)
            for shard in shards
        ]
        jax.tree.map(np.testing.assert_array_equal, *batches)


def dataset(**changes):
    shared, _ = both()
    size = len(shared.targets)
    pool = data.Examples("toy", shared.inputs, shared.targets, 3, items=shared.items)
    rows = np.split(np.arange(size), [size // 2])
    fractions = {"test_fraction": 0.3, "validation_fraction": 0.2, "unseen_fraction": 0.0}
    return data.assemble(pool, rows, seed=0, **fractions)._replace(**changes)


def test_the_server_reads_items_too():
    held = ServerExamples(np.int32([5, 1, 5]), np.int32([0, 1, 2]))
    of_server = placement.server_data(dataset(server=held))
    batch = of_server.take(jnp.arange(3))
    np.testing.assert_array_equal(batch.inputs, dataset().items[[5, 1, 5]])
    np.testing.assert_array_equal(
        dataset(server=held).gathered().server.inputs, dataset().items[[5, 1, 5]]
    )


@pytest.mark.parametrize("batch_size", [5, NUM_ITEMS, 100])
def test_precompute_calls_the_function_once_for_each_item(batch_size):
    calls = []

    def double(batch):
        calls.append(batch.shape)
        return 2 * batch[:, :2]

    found = data.precompute(dataset(mean=1.0), double, batch_size)
    np.testing.assert_allclose(found.items, 2 * dataset().items[:, :2], rtol=1e-6)
    assert calls == [(batch_size, federation.NUM_FEATURES)] * -(-NUM_ITEMS // batch_size)
    assert (found.mean, found.std) == (0.0, 1.0)
    np.testing.assert_array_equal(found.inputs, dataset().inputs)


def test_precompute_finds_the_distinct_inputs():
    held = ServerExamples(np.int32([5, 1, 5]), np.int32([0, 1, 2]))
    copies = dataset(server=held).gathered()
    found = data.precompute(copies, lambda batch: 3 * batch)
    assert len(found.items) == len(np.unique(dataset().inputs))
    again = found.gathered()
    np.testing.assert_allclose(again.inputs, 3 * copies.inputs, rtol=1e-6)
    np.testing.assert_allclose(again.server.inputs, 3 * copies.server.inputs, rtol=1e-6)


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda batch: batch[:2], "one row for each"),
        (lambda batch: batch / 0 * 0, "not finite for the items 0 to 11"),
    ],
)
def test_precompute_checks_the_outputs(function, message):
    with np.errstate(all="ignore"), pytest.raises(UserError, match=message):
        data.precompute(dataset(), function)
    with pytest.raises(UserError, match="inputs of toy are a"):
        data.precompute(dataset(inputs={"a": np.zeros(3)}, items=None), function)
