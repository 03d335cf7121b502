"""Measurements of a workload, and of the peak performance of the devices."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarking.workloads import Workload, study
from pfljax.data import FederatedDataset
from pfljax.engine import mapping
from pfljax.training.run import runtime
from pfljax.training.study import experiment


def spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """Returns the median and the range of timings; None if there are none."""
    if not seconds:
        return None
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def timed(function, *args):
    """Returns the result of a function, once computed, and its seconds."""
    begin = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - begin


def matmul_peak(devices: Sequence[jax.Device]) -> float:
    """Returns the FLOP/s of all devices together, each multiplying square float32 matrices.

    The best of seven trials, so that other processes have little effect.
    """
    side = 512 if devices[0].platform == "cpu" else 4096
    repeats = 64
    # Scaled so that repeated products do not grow.
    matrix = np.random.default_rng(0).normal(0, side**-0.5, (side, side)).astype(np.float32)

    def multiply(matrix):
        return jax.lax.fori_loop(0, repeats, lambda _, product: matrix @ product, matrix)

    program = mapping.over_devices(multiply, in_axes=(None,), out_axes=0, devices=devices)
    args = mapping.replicate(jnp.asarray(matrix), devices)
    timed(program, args)
    least = min(timed(program, args)[1] for _ in range(7))
    return len(devices) * repeats * 2 * side**3 / least


def measure(
    workload: Workload,
    dataset: FederatedDataset,
    engine: ml_collections.ConfigDict,
    *,
    rounds: int,
    evaluations: int,
    compute_dtype: str = "float32",
) -> dict:
    """Compiles and times a workload.

    Args:
      workload: The workload.
      dataset: Its examples.
      engine: The keys of `config.engine`, such as devices and clients per chunk.
      rounds: Number of timed calls of the round program.
      evaluations: Number of timed evaluations; 0 compiles none.
      compute_dtype: The dtype in which models compute.

    Returns:
      The figures, serializable as JSON.
    """
    jax.config.update("jax_enable_compilation_cache", False)  # so that compile times are real
    counter = runtime.CompilationCounter()
    built = experiment.build(study(workload, engine, compute_dtype), dataset)
    each_call = built.config.engine.rounds_per_call
    total = np.int32((rounds + 1) * each_call)
    # Wait for it, as its computation would slow down the compilation.
    state = jax.block_until_ready(built.programs.init(built.examples, jax.random.key(0)))
    round_args = (built.examples, total, np.int32(each_call))
    before = counter.programs
    built.programs.run_rounds.compile(state, *round_args)
    (state, _), _ = timed(built.programs.run_rounds, state, *round_args)  # the warm-up
    seconds, of_threads, examples, slots = [], [], [], []
    for _ in range(rounds):
        busy = time.process_time()
        (state, metrics), of_call = timed(built.programs.run_rounds, state, *round_args)
        of_threads.append((time.process_time() - busy) / each_call)
        seconds.append(of_call / each_call)
        examples.append(float(np.asarray(metrics["examples"]).sum()) / each_call)
        slots.append(float(np.asarray(metrics["slots"]).sum()) / each_call)
    evaluation_args = (state, built.examples, total)
    of_evaluations = []
    if evaluations:
        built.programs.evaluate.compile(*evaluation_args)
        timed(built.programs.evaluate, *evaluation_args)
        of_evaluations = [
            timed(built.programs.evaluate, *evaluation_args)[1] for _ in range(evaluations)
        ]
    compilations = counter.programs - before
    counter.close()
    return {
        "system": "pfljax",
        "num_clients": len(workload.sizes),
        "cohort": built.plan.size,
        "examples_per_round": statistics.fmean(examples),
        "seconds_compile": {
            "round": built.programs.run_rounds.compile_seconds,
            "evaluation": built.programs.evaluate.compile_seconds,
        },
        "seconds_per_round": spread(seconds),
        "processor_seconds_per_round": spread(of_threads),
        "seconds_per_evaluation": spread(of_evaluations),
        "examples_per_second": median_rate(examples, seconds),
        "padding_fraction": 1 - sum(examples) / sum(slots),
        "empty_rows_fraction": empty_rows(workload),
        "arithmetic": arithmetic(workload, built.devices, median_rate(examples, seconds)),
        "peak_host_bytes": runtime.peak_host_bytes(),
        "peak_device_bytes": runtime.peak_device_bytes(
            built.devices, [built.programs.run_rounds, built.programs.evaluate]
        ),
        "compilations": compilations,
    }


def empty_rows(workload: Workload) -> float:
    """Returns the fraction of padding rows in batches, counted over all clients.

    The last batch of a client is usually partial.
    """
    sizes = np.asarray(workload.sizes)
    rows = -(-sizes // workload.batch_size) * workload.batch_size
    return float(1 - sizes.sum() / rows.sum())


def median_rate(examples: Sequence[float], seconds: Sequence[float]) -> float:
    """Returns the median over rounds of examples per second; rounds may differ in size."""
    return statistics.median(np.divide(examples, seconds).tolist())


def arithmetic(workload: Workload, devices: Sequence[jax.Device], rate: float) -> dict:
    """Returns the FLOP/s of the devices, and their peak.

    Args:
      workload: The workload; direct sums are counted, whatever implementation computes them.
      devices: The devices.
      rate: The training examples per second.
    """
    of_example = workload.network.flop_per_example(workload.shape, workload.num_classes)
    per_second, peak = workload.trainings * of_example * rate, matmul_peak(devices)
    return {
        "flop_per_example": workload.trainings * of_example,
        "flop_per_second": per_second,
        "matmul_flop_per_second": peak,
        "share_of_matmul_peak": per_second / peak,
    }


def machine(wanted: int) -> dict:
    """Returns a description of the machine with `wanted` devices; 0 means all."""
    devices = runtime.devices(wanted)
    return {
        "jax": jax.__version__,
        "platform": devices[0].device_kind,
        "num_devices": len(devices),
        "cores": runtime.available_cores(),
        "machine": platform.processor() or platform.machine(),
    }
