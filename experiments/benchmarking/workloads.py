"""The workloads of the benchmark: published settings, with synthetic examples of the same shapes.

Published client sizes are used as they are; others are log-normal, with the known mean and standard
deviation of the data set, and always the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from benchmarking.networks import NETWORKS, Network
from pfljax.data import FederatedDataset, Split
from pfljax.errors import UserError
from pfljax.training.study import config as config_lib
from pfljax.training.study import config_values


class Workload(NamedTuple):
    """A workload.

    Attributes:
      about: The line in the list of workloads.
      network: The network.
      sizes: The number of training examples of each client.
      shape: The shape of one example.
      num_classes: `C`.
      batch_size: The batch size of local training, which is one epoch.
      cohort: Number of clients in a round; 0 means all.
      algorithm: The name of the method.
      trainings: Number of local trainings of a client in a round of the method.
      train_per_test: Number of training examples for each test example.
      learning_rate: The learning rate of the clients.
      rounds_per_call: Number of rounds in a call of the round program, which are timed together.
      pool: Number of rows that clients share, for populations on the host; 0 if they share none.
      cohorts: Cohort sizes to measure one after another, instead of `cohort`.
    """

    about: str
    network: Network
    sizes: Sequence[int]
    shape: tuple[int, ...]
    num_classes: int
    batch_size: int
    cohort: int = 0
    algorithm: str = "fedavg"
    trainings: int = 1
    train_per_test: int = 3
    learning_rate: float = 0.005
    rounds_per_call: int = 1
    pool: int = 0
    cohorts: tuple[int, ...] = ()


# Client sizes of PFLlib's MNIST example.
_R4_SIZES = (
    [1972, 374, 1222, 1905, 1437, 4641, 942, 951, 2700, 3004]
    + [2337, 2829, 2709, 1600, 4297, 4086, 2721, 4239, 3949, 4577]
)  # fmt: skip


def _drawn(count: int, mean: float, deviation: float, least: int, most: int) -> list[int]:
    """Draws client sizes: log-normal, clipped to a range, and always the same."""
    variance = np.log1p((deviation / mean) ** 2)
    draw = np.random.default_rng(0).lognormal(np.log(mean) - variance / 2, variance**0.5, count)
    return np.clip(draw, least, most).astype(int).tolist()


_EMNIST = {"shape": (28, 28, 1), "num_classes": 62, "train_per_test": 9}
_EMNIST_SIZES = _drawn(3400, 198, 80, 16, 500)  # in all about 671,585, FedEMNIST's number
_MNIST = {"shape": (28, 28, 1), "num_classes": 10, "batch_size": 10}
_R1 = Workload(
    "pfl-research's CIFAR10-IID: 1,000 clients of 50 images, 50 a round, batches of 10, simple_cnn",
    NETWORKS["simple_cnn"],
    [50] * 1000,
    (32, 32, 3),
    num_classes=10,
    batch_size=10,
    cohort=50,
    train_per_test=5,
    learning_rate=0.1,
)
_R2 = Workload(
    "FedJAX's EMNIST_CONV: 3,400 clients, 10 a round, batches of 10, simple_cnn",
    NETWORKS["simple_cnn"],
    _EMNIST_SIZES,
    batch_size=10,
    cohort=10,
    learning_rate=0.001,
    **_EMNIST,
)
_R3 = Workload(
    "FedJAX's EMNIST_DENSE: 3,400 clients, 340 a round, batches of 20, MLP 784-200-200-62, "
    "five rounds in a call",
    NETWORKS["emnist_dense"],
    _EMNIST_SIZES,
    batch_size=20,
    cohort=340,
    learning_rate=0.001,
    rounds_per_call=5,
    **_EMNIST,
)
_R4_MLP = Workload(
    "PFLlib's MNIST example: 20 clients, 52,492 images, all each round, MLP 784-100-10",
    NETWORKS["mlp"],
    _R4_SIZES,
    **_MNIST,
)
_POPULATION = Workload(
    "FedPer, --num_clients on the host with a head each, 20 examples each from one pool, "
    "100 a round, ten rounds in a call; evaluations score 1,000 clients",
    NETWORKS["mlp"],
    (),
    cohort=100,
    algorithm="fedper",
    rounds_per_call=10,
    pool=4096,
    **_MNIST,
)
WORKLOADS = {
    "r1": _R1,
    "r2": _R2,
    "r3": _R3,
    "r3-apfl": _R3._replace(
        about="r3 with APFL: a second model for each client, in a learned mixture",
        algorithm="apfl",
        trainings=2,
    ),
    "r3-ditto": _R3._replace(
        about="r3 with Ditto: a second model for each client, with a proximal term",
        algorithm="ditto",
        trainings=2,
    ),
    "r4-mlp": _R4_MLP,
    "r4-cnn": _R4_MLP._replace(
        about="the same with the 4-layer CNN (582,026 parameters)", network=NETWORKS["cnn"]
    ),
    "r5": Workload(
        "PFLlib's CIFAR-100: 500 clients with a CNN each (1.8 GB), Ditto; meant for a GPU",
        NETWORKS["cnn"],
        [90] * 500,
        (32, 32, 3),
        num_classes=100,
        batch_size=10,
        algorithm="ditto",
        trainings=2,
    ),
    "r6": Workload(
        "FLUTE's LR_MNIST: 1,000 clients, 10 a round, logistic regression, ten rounds in a call",
        NETWORKS["logistic"],
        _drawn(1000, 62, 95, 8, 1000),
        cohort=10,
        learning_rate=0.03,
        rounds_per_call=10,
        **_MNIST,
    ),
    "r7": _R2._replace(
        about="FLUTE's CNN_FEMNIST: r2 with batches of 20; meant for a GPU",
        batch_size=20,
        learning_rate=0.1,
    ),
    "r10": Workload(
        "FederatedScope's FEMNIST: 100 clients, 40 a round, batches of 10, leaf_cnn",
        NETWORKS["leaf_cnn"],
        _drawn(100, 136, 53, 16, 400),
        batch_size=10,
        cohort=40,
        learning_rate=0.01,
        **_EMNIST,
    ),
    "r12": _R1._replace(
        about="r1 with cohorts of 1, 2, 5, 10, 20 and 50", cohorts=(1, 2, 5, 10, 20, 50)
    ),
    "population": _POPULATION,
    "population-1000": _POPULATION._replace(about="the same with 1,000 a round", cohort=1000),
}


def find(name: str, num_clients: int) -> Workload:
    """Returns a workload by name.

    Args:
      name: A key of `WORKLOADS`.
      num_clients: Number of clients of the two population workloads.

    Raises:
      UserError: There is no such workload, or it needs more clients.
    """
    config_values.require_known("workload", name, WORKLOADS)
    workload = WORKLOADS[name]
    if not workload.pool:
        return workload
    if num_clients < workload.cohort:
        raise UserError(f"--num_clients must be at least the cohort, {workload.cohort}.")
    return workload._replace(sizes=np.full(num_clients, 20, np.int32))


def synthetic(workload: Workload) -> FederatedDataset:
    """Returns uniformly random pixels and labels with the shapes and sizes of a workload."""
    draw = np.random.default_rng(0)
    train = np.array(workload.sizes, np.int32)
    test = train // workload.train_per_test
    if workload.pool:
        num_examples = workload.pool
        begins = np.arange(len(train), dtype=np.int32) % (workload.pool - max(train + test))
    else:
        num_examples = int(np.sum(train + test))
        begins = (np.cumsum(train + test) - train - test).astype(np.int32)
    nothing = np.zeros_like(train)
    return FederatedDataset(
        name="synthetic",
        inputs=draw.integers(0, 256, (num_examples, *workload.shape), dtype=np.uint8),
        targets=draw.integers(0, workload.num_classes, num_examples).astype(np.int32),
        train=Split(begins, train),
        validation=Split(nothing, nothing),
        test=Split(begins + train, test),
        num_classes=workload.num_classes,
        mean=127.5,
        std=127.5,
    )


def study(
    workload: Workload, engine: ml_collections.ConfigDict, compute_dtype: str = "float32"
) -> ml_collections.ConfigDict:
    """Returns the config of a workload.

    Args:
      workload: The workload.
      engine: The keys of `config.engine`, such as devices and clients per chunk.
      compute_dtype: The dtype in which models compute.
    """
    config = config_lib.default_config()
    config.compute_dtype = compute_dtype
    config.algorithm = workload.algorithm
    config.model = workload.network.config()
    config.batch_size = workload.batch_size
    config.client_optimizer.learning_rate = workload.learning_rate
    config.cohort.size = workload.cohort
    config.engine.update(engine)
    config.engine.rounds_per_call = workload.rounds_per_call
    if workload.pool:
        config.engine.residence, config.engine.eval_clients = "host", 1000
    return config
