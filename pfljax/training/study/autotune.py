"""The client batch size: the number of clients that a device trains at once, measured and cached.

Clients of a chunk clients operations, and all take as many steps as the largest. The time of a step
is measured for chunks of several sizes on a few clients of one size, without the run's data, on all
devices of the process at once: a single device would use the caches and threads of the others too.
The measurements are stored with the compilation cache. The cost of a cohort follows from them and
from the clients' sizes:

    cost(c) = sum over chunks of c clients of  c * seconds(c) * (most steps in the chunk)
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from pfljax import core
from pfljax.core import Context, LocalTraining
from pfljax.core.client_data import ClientData
from pfljax.data import FederatedDataset
from pfljax.engine import mapping, programs, sampling
from pfljax.training.run import writers
from pfljax.training.study.config_checks import CHUNK_RULES

# More vmapped clients need more memory and gain little.
_MAX_CHUNK = 64
# Single clients keep plain matrix products, which are fastest on a CPU unless they are tiny.
_ON_CPU = (1, 4, 16)
_ELSEWHERE = (1, 4, 16, 64)
# A measurement does not pay off for shorter runs.
_MIN_ROUNDS = 20
_STEPS = 4
_FILE = "clients_per_chunk.json"


def by_rule(setting: str, devices: Sequence[jax.Device], clients: int) -> int:
    """Returns the client batch size without a measurement.

    Args:
      setting: One of `config.CHUNK_RULES`, or a number.
      devices: The devices of the run.
      clients: Number of clients of a device in a round, the upper bound.
    """
    if setting not in CHUNK_RULES:
        return min(int(setting), clients)
    return 1 if devices[0].platform == "cpu" else min(clients, _MAX_CHUNK)


def cost(seconds: float, steps: np.ndarray, chunk: int) -> float:
    """Returns the seconds that a device needs for its clients.

    Args:
      seconds: The seconds of a step of one client in chunks of this size.
      steps: `[clients]`, the steps of each client, in descending order.
      chunk: The client batch size.

    Example:
      >>> cost(0.5, np.array([4, 3, 2, 2, 1]), 2)
      7.0
    """
    filled = np.pad(steps, (0, -len(steps) % chunk))
    return seconds * chunk * float(filled.reshape(-1, chunk).max(axis=1).sum())


def best(seconds: dict[int, float], steps: np.ndarray) -> int:
    """Returns the measured chunk size with the lowest cost."""
    return min(sorted(seconds), key=lambda chunk: cost(seconds[chunk], steps, chunk))


def measure(
    make: programs.Make,
    given: programs.Inputs,
    local: LocalTraining,
    inputs: Any,
    targets: jax.ShapeDtypeStruct,
    chunks: Sequence[int],
    devices: Sequence[jax.Device],
) -> dict[int, float]:
    """Times a step of local training on each device, in chunks of several sizes.

    Args:
      make: Builds the task.
      given: The inputs of the programs.
      local: The local training of the run.
      inputs: Shape and dtype of one stored example, or a tree of them.
      targets: The same for its target.
      chunks: The sizes, in ascending order; those after one that is far slower, or does not fit
        into device memory, are skipped.
      devices: All devices of this process.

    Returns:
      The seconds of a step of one client, for each size.
    """
    num_clients, size = max(chunks), _STEPS * local.batch_size

    def zeros(example):
        return jnp.zeros((size, *example.shape), example.dtype)

    data = ClientData(
        inputs=jax.tree.map(zeros, inputs),
        targets=zeros(targets),
        offset=jnp.int32(0),
        size=jnp.int32(size),
        class_counts=None,
        max_size=size,
    )
    once = local.for_epochs(1)

    def train_all(chunk, params, data, keys, given):
        task = make(*given).task

        def train_one(key):
            context = Context(key, jnp.int32(0), jnp.int32(1), jnp.int32(0), key)
            return (), core.train(task.loss, params, data, context, once).params

        return mapping.map_and_sum(train_one, keys, clients_per_chunk=chunk)[1]

    found: dict[int, float] = {}
    params = jax.jit(lambda given, key: make(*given).task.init(key))(given, jax.random.key(0))
    params, data = mapping.replicate((params, data), devices)
    for chunk in chunks:
        keys = jax.random.split(jax.random.key(0), num_clients // chunk * chunk)
        program = mapping.over_devices(
            functools.partial(train_all, chunk),
            in_axes=(None, None, None, None),
            out_axes=0,
            devices=devices,
        )
        try:
            replicated = mapping.replicate(keys, devices)
            taken = _minimum_seconds(program, params, data, replicated, given)
        except jax.errors.JaxRuntimeError as error:
            if not found or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            break  # This size does not fit into device memory.
        found[chunk] = taken / (keys.shape[0] * _STEPS)
        if found[chunk] > 1.5 * min(found.values()):
            break
    return found


def _minimum_seconds(function: Callable, *args: Any) -> float:
    """Returns the minimum time of a compiled function."""
    jax.block_until_ready(function(*args))
    taken = []
    for _ in range(3):
        begin = time.perf_counter()
        jax.block_until_ready(function(*args))
        taken.append(time.perf_counter() - begin)
    return min(taken)


def _memory() -> pathlib.Path | None:
    """Returns the file of measurements; None if compiled programs are not cached."""
    cache = jax.config.jax_compilation_cache_dir
    return pathlib.Path(cache) / _FILE if cache else None


def _read(path: pathlib.Path | None) -> dict[str, dict[str, float]]:
    try:
        return json.loads(path.read_text()) if path else {}
    except (OSError, ValueError):
        return {}  # missing measurements are repeated


def remembered(key: str, measure: Callable[[], dict[int, float]]) -> dict[int, float]:
    """Returns the measurement of a key, by `measure()` if it is not stored."""
    path = _memory()
    known = _read(path).get(key)
    if known is None:
        known = measure()
        if path:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                writers.write_json(path, {**_read(path), key: known})
            except OSError:
                pass  # without the cache, the measurement is repeated
    return {int(chunk): seconds for chunk, seconds in known.items()}


def choose(
    config: ml_collections.ConfigDict,
    dataset: FederatedDataset,
    make: programs.Make,
    given: programs.Inputs,
    local: LocalTraining,
    plan: sampling.CohortPlan,
    devices: Sequence[jax.Device],
) -> int:
    """Returns the client batch size of a config.

    'default' depends on the platform only, so that two runs of a config agree to the last bit.
    'auto' measures, if the run is long enough; all processes of a run use the result of the first.

    Args:
      config: The config of the run.
      dataset: The data set, for the clients' sizes.
      make: Builds the task.
      given: The inputs of the programs.
      local: The local training of the run.
      plan: The parameters of cohort sampling.
      devices: The devices of the run.
    """
    clients = -(-plan.capacity // len(devices))
    rule = by_rule(config.engine.clients_per_chunk, devices, clients)
    if config.engine.clients_per_chunk != "auto" or config.rounds < _MIN_ROUNDS or clients == 1:
        return rule
    local_devices = [device for device in devices if device.process_index == jax.process_index()]
    sizes_tried = _ON_CPU if local_devices[0].platform == "cpu" else _ELSEWHERE
    chunks = sorted({min(clients, chunk) for chunk in sizes_tried})
    one_input = dataset.input_forms
    one_target = jax.ShapeDtypeStruct(dataset.targets.shape[1:], dataset.targets.dtype)
    described = (
        *(jax.__version__, local_devices[0].device_kind, len(local_devices), len(devices), chunks),
        *(config.model.to_json(), config.compute_dtype, config.client_optimizer.name),
        *(config.batch_size, str(one_input), dataset.num_classes, config.adapter.to_json()),
    )
    key = hashlib.sha256(repr(described).encode()).hexdigest()[:16]
    seconds = remembered(
        key, lambda: measure(make, given, local, one_input, one_target, chunks, local_devices)
    )
    chosen = best(seconds, _typical_steps(dataset, local, plan, len(devices)))
    if jax.process_count() > 1:
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    return chosen


def _typical_steps(
    dataset: FederatedDataset, local: LocalTraining, plan: sampling.CohortPlan, num_devices: int
) -> np.ndarray:
    """Returns the steps of a device's clients in a typical cohort, in descending order."""
    sizes = np.sort(dataset.train.sizes[: plan.num_clients])[::-1]
    ranks = (np.arange(plan.capacity) + 0.5) * len(sizes) / plan.capacity
    steps = np.ceil(sizes[ranks.astype(int)] / local.batch_size)
    if local.num_steps:
        steps = np.where(steps > 0, local.num_steps, 0)
    return steps[: math.ceil(len(steps) / num_devices) * num_devices : num_devices]
