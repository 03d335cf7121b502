"""Runs of methods on the tiny federation, for tests that two methods are the same at some value.

Runs of FedAvg and of local training are part of most of these tests. A run is kept for the
other tests of its file and for the next files, and so are its compiled programs.
"""

from __future__ import annotations

import functools

import federation
import numpy as np

from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling
from pfljax.engine.examples import Examples

ALL_CLIENTS = sampling.CohortPlan(num_clients=8, size=8)

_OPTIONS = ("task", "local", "plan", "data", "rounds", "join")
# More than a file has. Older runs are dropped, and with them the memory maps of their programs.
_KEPT_RUNS = 32


def run(name: str, **options) -> federation.Outcome:
    """Runs a method on the tiny federation, or returns the outcome of the same earlier run.

    Args:
      name: Name of the method.
      **options: Hyper-parameters of the method; and the task, the local training, the plan of
        cohorts, the data, the number of rounds and how clients join, as `federation.run` takes
        them. A run with `data` is not kept.

    Returns:
      The outcome, which several tests may share.
    """
    return _run(name, **options) if "data" in options else _run_once(name, **options)


def _run(name, **options):
    hyperparameters = {key: options.pop(key) for key in list(options) if key not in _OPTIONS}
    task = options.pop("task", federation.task())
    local = options.pop("local", federation.local_training(shuffle=False))
    local = local._replace(observe=task.observe)
    algorithm = ALGORITHMS[name](task, local, **hyperparameters)
    return federation.run(algorithm, score=task, **options)


_run_once = functools.lru_cache(maxsize=_KEPT_RUNS)(_run)


def twins() -> Examples:
    """Five clients whose batches of four hold two examples twice, one copy in each half."""
    draw = np.random.default_rng(2)
    targets = draw.integers(0, 3, (5, 4, 1, 2)).astype(np.int32)
    inputs = draw.normal(size=(5, 4, 1, 2, federation.NUM_FEATURES)).astype(np.float32)
    targets, inputs = np.repeat(targets, 2, axis=2), np.repeat(inputs, 2, axis=2)
    return federation.examples_of(
        inputs.reshape(80, -1), targets.reshape(80), np.full(5, 16), num_classes=3
    )
