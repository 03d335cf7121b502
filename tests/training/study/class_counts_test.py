"""Class counts, of each client and class, exist only where the method reads them."""

import numpy as np
import pytest

from pfljax import data
from pfljax.core import tree
from pfljax.data import FederatedDataset
from pfljax.data.dataset import Split
from pfljax.training.study import config as config_lib
from pfljax.training.study import experiment, placement

CLIENTS, TOKENS, LENGTH, EACH = 200, 5000, 4, 3


def config_of(algorithm, model, residence, **arguments):
    config = config_lib.default_config()
    with config.unlocked():
        config.model = {"name": model, **arguments}
    config.algorithm, config.engine.residence, config.engine.devices = algorithm, residence, 1
    config.rounds = 2
    return config


def texts():
    """Clients with three texts of a large vocabulary each."""
    ids = np.random.default_rng(0).integers(1, TOKENS, (CLIENTS * EACH, LENGTH + 1), np.int32)
    start = np.arange(CLIENTS, dtype=np.int32) * EACH
    one, none = np.ones(CLIENTS, np.int32), np.zeros(CLIENTS, np.int32)
    return FederatedDataset(
        name="texts",
        inputs=ids[:, :-1],
        targets=ids[:, 1:],
        train=Split(start, 2 * one),
        validation=Split(start + 2, none),
        test=Split(start + 2, one),
        num_classes=TOKENS,
        task="next_token",
        vocabulary=(TOKENS,),
    )


def test_nothing_of_the_size_of_clients_times_tokens_lies_on_a_device():
    config = config_of("fedavg", "lstm_lm", "device", embedding=2, widths=(2,))
    built = experiment.build(config, texts())
    counts = 4 * CLIENTS * TOKENS
    assert built.examples.class_counts is None
    assert tree.num_bytes(built.examples) < counts / 10
    with_counts = placement.to_devices(texts(), built.devices, class_counts=True)
    assert tree.num_bytes(with_counts) == tree.num_bytes(built.examples) + counts


def test_nothing_of_that_size_lies_on_the_host():
    config = config_of("fedavg", "lstm_lm", "host", embedding=2, widths=(2,))
    built = experiment.build(config, texts())
    assert built.examples.class_counts is None
    population, examples = built.store.example_shapes()
    assert population.class_counts is None and examples.class_counts is None
    shard = built.examples.shard(np.array([3, -1]), ("train",), capacity=5)
    assert shard.class_counts is None and shard.sizes["train"].tolist() == [2, 0]


@pytest.mark.parametrize("residence", ["device", "host"])
def test_fedgen_reads_them(residence):
    dataset = data.load(name="digits", num_clients=5)
    config = config_of("fedgen", "mlp", residence, widths=(8,))
    built = experiment.build(config, dataset)
    counts = built.examples.class_counts
    found = np.asarray(counts if residence == "device" else counts())
    np.testing.assert_array_equal(found, dataset.class_counts())
    assert built.uses_class_counts
    # A method that follows on the same examples has none, and shares all other arrays.
    if residence == "device":
        other = experiment.build(
            config_of("fedavg", "mlp", residence, widths=(8,)), dataset, built.examples
        )
        assert other.examples.class_counts is None
        assert other.examples.inputs is built.examples.inputs
        again = experiment.build(config, dataset, other.examples)
        np.testing.assert_array_equal(again.examples.class_counts, dataset.class_counts())
