"""How many clients a device trains together: measured once for each model, and remembered.

Clients trained together share operations, and wait for the one with most steps. What a step costs
in chunks of several sizes is measured on a few clients of one size, without the run's data, on all
devices of the process at once, as rounds run: one alone would have caches and threads of the others
too. It is kept beside the compilation cache. What a cohort costs follows from it and from the
clients' sizes:

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

# Beyond this many, vmapped clients cost memory and gain little.
_MOST_TOGETHER = 64
# One client at a time keeps plain matrix products, which a CPU does best unless they are tiny.
_ON_CPU = (1, 4, 16)
_ELSEWHERE = (1, 4, 16, 64)
# A run shorter than this is over before a measurement pays.
_LEAST_ROUNDS = 20
_STEPS = 4
_FILE = "clients_per_chunk.json"


def by_rule(setting: str, devices: Sequence[jax.Device], share: int) -> int:
    """Returns how many clients a device takes together where nothing is measured.

    Args:
      setting: 'auto' or a number.
      devices: of the run.
      share: how many clients a device has in all; more than these are never vmapped.
    """
    if setting != "auto":
        return min(int(setting), share)
    return 1 if devices[0].platform == "cpu" else min(share, _MOST_TOGETHER)


def cost(seconds: float, steps: np.ndarray, chunk: int) -> float:
    """Returns the seconds that a device needs for its clients.

    Args:
      seconds: of a step of one client in chunks of this size.
      steps: `[clients]`, of each, the most first, as cohorts are dealt.
      chunk: how many clients are trained together.

    Example:
      >>> cost(0.5, np.array([4, 3, 2, 2, 1]), 2)
      7.0
    """
    filled = np.pad(steps, (0, -len(steps) % chunk))
    return seconds * chunk * float(filled.reshape(-1, chunk).max(axis=1).sum())


def best(seconds: dict[int, float], steps: np.ndarray) -> int:
    """Returns the size of chunks that costs least, of those measured."""
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
      local: of the run.
      inputs: Shape and dtype of one stored example, or a tree of them.
      targets: Likewise, of its target.
      chunks: the sizes, in rising order; those after one that is far slower, or does not fit into
        the device's memory, are left out.
      devices: all of this process.

    Returns:
      Seconds of a step of one client, for each size.
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
    once = local._replace(epochs=1)

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
            taken = _least_seconds(program, params, data, replicated, given)
        except jax.errors.JaxRuntimeError as error:
            if not found or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            break  # So many do not fit into the devices' memory.
        found[chunk] = taken / (keys.shape[0] * _STEPS)
        if found[chunk] > 1.5 * min(found.values()):
            break
    return found


def _least_seconds(function: Callable, *args: Any) -> float:
    """Returns how long a function takes at best, once it is compiled."""
    jax.block_until_ready(function(*args))
    taken = []
    for _ in range(3):
        begin = time.perf_counter()
        jax.block_until_ready(function(*args))
        taken.append(time.perf_counter() - begin)
    return min(taken)


def _memory() -> pathlib.Path | None:
    """Where measurements are kept; None where compiled programs are not kept either."""
    cache = jax.config.jax_compilation_cache_dir
    return pathlib.Path(cache) / _FILE if cache else None


def _read(path: pathlib.Path | None) -> dict[str, dict[str, float]]:
    try:
        return json.loads(path.read_text()) if path else {}
    except (OSError, ValueError):
        return {}  # Whatever is lost there is measured again.


def remembered(key: str, measure: Callable[[], dict[int, float]]) -> dict[int, float]:
    """Returns the measurement of a key, made by `measure()` where it is not known yet."""
    path = _memory()
    known = _read(path).get(key)
    if known is None:
        known = measure()
        if path:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                writers.write_json(path, {**_read(path), key: known})
            except OSError:
                pass  # A cache that cannot be written costs time, not the run.
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
    """Returns how many clients a device trains together, as the config asks for it.

    'auto' measures, if the run is long enough; all processes of a run follow the first.

    Args:
      config: of the run.
      dataset: whose sizes decide how much clients wait for each other.
      make: Builds the task.
      given: The inputs of the programs.
      local: of the run.
      plan: how many clients there are in a cohort.
      devices: of the run.
    """
    share = -(-plan.capacity // len(devices))
    rule = by_rule(config.engine.clients_per_chunk, devices, share)
    if config.engine.clients_per_chunk != "auto" or config.rounds < _LEAST_ROUNDS or share == 1:
        return rule
    own = [device for device in devices if device.process_index == jax.process_index()]
    sizes_tried = _ON_CPU if own[0].platform == "cpu" else _ELSEWHERE
    chunks = sorted({min(share, chunk) for chunk in sizes_tried})
    one_input, one_target = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape[1:], array.dtype),
        (dataset.inputs, dataset.targets),
    )
    described = (
        *(jax.__version__, own[0].device_kind, len(own), len(devices), chunks),
        *(config.model.to_json(), config.compute_dtype, config.client_optimizer.name),
        *(config.batch_size, str(one_input), dataset.num_classes, config.adapter.to_json()),
    )
    key = hashlib.sha256(repr(described).encode()).hexdigest()[:16]
    seconds = remembered(
        key, lambda: measure(make, given, local, one_input, one_target, chunks, own)
    )
    chosen = best(seconds, _typical_steps(dataset, local, plan, len(devices)))
    if jax.process_count() > 1:
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    return chosen


def _typical_steps(
    dataset: FederatedDataset, local: LocalTraining, plan: sampling.CohortPlan, num_devices: int
) -> np.ndarray:
    """Returns the steps of a device's clients in a cohort of clients of all sizes, most first."""
    sizes = np.sort(dataset.train.sizes[: plan.num_clients])[::-1]
    ranks = (np.arange(plan.capacity) + 0.5) * len(sizes) / plan.capacity
    steps = np.ceil(sizes[ranks.astype(int)] / local.batch_size)
    return steps[: math.ceil(len(steps) / num_devices) * num_devices : num_devices]
