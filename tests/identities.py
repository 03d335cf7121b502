"""Runs of methods on the tiny federation, for tests that two methods are the same at some value.

Runs of FedAvg and of local training are part of most of these tests. A run is kept for the
other tests of its file and for the next files, and so are its compiled programs.
"""

from __future__ import annotations

import functools

import federation
import jax
import jax.numpy as jnp
import numpy as np

from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling
from pfljax.engine.examples import Examples
from pfljax.engine.programs import Inputs, Method

ALL_CLIENTS = sampling.CohortPlan(num_clients=8, size=8)

_OF_ENGINE = ("plan", "rounds", "join")
_OPTIONS = ("task", "local", "data", *_OF_ENGINE)
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
    data = options.pop("data", None) or federation.examples()
    values = {key: value for key, value in options.items() if _is_number_of_method(key, value)}
    other = {key: value for key, value in options.items() if key not in values}
    try:
        programs = _programs(name, frozenset(values), **other)
        return programs.run(data, Inputs(values={k: jnp.asarray(v) for k, v in values.items()}))
    except jax.errors.ConcretizationTypeError:  # one of the numbers determines a shape
        return _programs(name, frozenset(), **options).run(data)


def _is_number_of_method(key, value):
    return isinstance(value, float) and key not in _OPTIONS


@functools.lru_cache(maxsize=_KEPT_RUNS)
def _programs(name, numbers, **options):
    """The programs of a method, shared by the runs that differ in some `numbers`."""
    engine = {key: options.pop(key) for key in _OF_ENGINE if key in options}
    task = options.pop("task", federation.task())
    local = options.pop("local", federation.local_training(shuffle=False))
    local = local._replace(observe=task.observe)

    options = {**federation.held_by_the_server(name), **options}

    def make(frozen, values, server_data):
        return Method(ALGORITHMS[name](task, local, **options, **values), task)

    return federation.programs(make, **engine)


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


def balanced():
    """Five clients, each with five examples of the three classes and one more of the last."""
    labels = np.tile(np.append(np.repeat(np.arange(3), 5), 2), 5).astype(np.int32)
    draw = np.random.default_rng(1).normal(size=(80, federation.NUM_FEATURES)).astype(np.float32)
    return federation.examples_of(draw, labels, np.full(5, 16), num_classes=3)
