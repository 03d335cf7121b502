"""Measures rounds and evaluations on the machine at hand, beside an opponent in the same run.

    python experiments/benchmark.py --workload=r4-mlp --against=eager_pytorch --output=FILE.json

Prints, and writes as JSON: seconds to compile, median and spread of seconds per round and per
evaluation, examples per second, padding, peak memory and the number of compilations. Examples are
synthetic, of the right shapes and sizes. The opponents come with the `[peers]` extra and get their
best setting.

Workloads:
  r4-mlp: FedAvg, 20 clients of the sizes of PFLlib's MNIST example (52,492 examples), batches of
    10, MLP 784-100-10.
  r4-cnn: the same with the 4-layer CNN (582,026 parameters).
  population: FedPer, --num_clients on the host with a head each, 20 examples each out of one small
    pool, cohorts of 100, ten rounds in a call; evaluations score 1,000 clients. No opponent.
"""

from __future__ import annotations

import json
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import binary
import jax
import ml_collections
import numpy as np
import rich.table
from absl import flags
from ml_collections import config_flags

from pfljax.data import FederatedDataset, Split
from pfljax.errors import UserError
from pfljax.training import config as config_lib
from pfljax.training import experiment, runtime, writers

_PEERS = pathlib.Path(__file__).parent / "peers"

# Training examples of the clients in PFLlib's MNIST example.
_R4_SIZES = (
    [1972, 374, 1222, 1905, 1437, 4641, 942, 951, 2700, 3004]
    + [2337, 2829, 2709, 1600, 4297, 4086, 2721, 4239, 3949, 4577]
)  # fmt: skip


class Workload(NamedTuple):
    """What is measured.

    Attributes:
      model: a name in the table of models.
      algorithm: a name in the table of methods.
      sizes: training examples of each client; a third as many are for testing.
      shape: of one example.
      num_classes: `C`.
      batch_size: of local training.
      cohort: clients in a round; 0 means all.
      pool: rows that clients share, for populations on the host; 0 where each has its own.
    """

    model: str
    algorithm: str
    sizes: Sequence[int]
    shape: tuple[int, ...]
    num_classes: int
    batch_size: int
    cohort: int = 0
    pool: int = 0


WORKLOADS = {
    "r4-mlp": Workload("mlp", "fedavg", _R4_SIZES, (28, 28, 1), 10, 10),
    "r4-cnn": Workload("cnn", "fedavg", _R4_SIZES, (28, 28, 1), 10, 10),
    "population": Workload("mlp", "fedper", (), (28, 28, 1), 10, 10, cohort=100, pool=4096),
}

_WORKLOAD = flags.DEFINE_string("workload", "r4-mlp", f"One of {', '.join(WORKLOADS)}.")
_AGAINST = flags.DEFINE_list("against", [], "Opponents to run too: eager_pytorch.")
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the figures as JSON.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed rounds.")
_NUM_CLIENTS = flags.DEFINE_integer("num_clients", 1000, "Clients of the workload population.")
config_flags.DEFINE_config_dict(
    "config", ml_collections.ConfigDict({"engine": config_lib.default_config().engine})
)


def synthetic(workload: Workload) -> FederatedDataset:
    """Returns uniform pixels and labels, of the workload's shapes and sizes."""
    draw = np.random.default_rng(0)
    train = np.array(workload.sizes, np.int32)
    test = train // 3
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


def study(workload: Workload, engine: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the config of a workload; one round per call, so that each is timed alone.

    A population on the host runs ten, which shows how the host's work hides behind the devices'.
    """
    config = config_lib.default_config()
    config.algorithm = workload.algorithm
    config.model.name = workload.model
    config.batch_size = workload.batch_size
    config.client_optimizer.learning_rate = 0.005
    config.cohort.size = workload.cohort
    config.engine.update(engine)
    config.engine.rounds_per_call = 1
    if workload.pool:
        config.engine.rounds_per_call = 10
        config.engine.residence, config.engine.eval_clients = "host", 1000
    return config


def spread(seconds: list[float]) -> dict[str, float]:
    """Returns the median and the range of some timings."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def measure(workload: Workload, engine: ml_collections.ConfigDict, rounds: int) -> dict:
    """Compiles and times a workload.

    Args:
      workload: what to run.
      engine: devices, clients per chunk and so on.
      rounds: timed calls for rounds; as many evaluations are timed.

    Returns:
      The figures, for JSON.
    """
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are to be real
    counter = runtime.CompilationCounter()
    built = experiment.build(study(workload, engine), synthetic(workload))
    each_call = built.config.engine.rounds_per_call
    total = np.int32(rounds * each_call)

    def timed(program, *args):
        begin = time.perf_counter()
        result = jax.block_until_ready(program(*args))
        return result, time.perf_counter() - begin

    state = built.start(built.examples, jax.random.key(0))
    round_args = (built.examples, total, np.int32(each_call))
    before = counter.programs
    built.run_rounds.compile(state, *round_args)
    built.evaluate.compile(state, built.examples, total)
    (state, _), _ = timed(built.run_rounds, state, *round_args)  # the warm-up
    timed(built.evaluate, state, built.examples, total)
    round_seconds, evaluation_seconds = [], []
    for _ in range(rounds):
        (state, metrics), seconds = timed(built.run_rounds, state, *round_args)
        round_seconds.append(seconds / each_call)
        _, seconds = timed(built.evaluate, state, built.examples, total)
        evaluation_seconds.append(seconds)
    counter.close()
    examples, slots = (float(np.sum(metrics[name])) / each_call for name in ("examples", "slots"))
    return {
        "system": "pfljax",
        "jax": jax.__version__,
        "platform": built.devices[0].device_kind,
        "num_devices": len(built.devices),
        "cores": runtime.available_cores(),
        "machine": platform.processor() or platform.machine(),
        "num_clients": len(workload.sizes),
        "examples_per_round": int(examples),
        "seconds_compile": {
            "round": built.run_rounds.compile_seconds,
            "evaluation": built.evaluate.compile_seconds,
        },
        "seconds_per_round": spread(round_seconds),
        "seconds_per_evaluation": spread(evaluation_seconds),
        "examples_per_second": examples / statistics.median(round_seconds),
        "padding_fraction": 1 - examples / slots,
        "peak_host_bytes": runtime.peak_host_bytes(),
        "peak_device_bytes": runtime.peak_device_bytes(
            built.devices, [built.run_rounds, built.evaluate]
        ),
        "compilations": counter.programs - before,
    }


def eager_pytorch(workload: Workload, rounds: int) -> dict:
    """Runs the eager PyTorch loop in a process of its own; it picks its better thread count."""
    command = [sys.executable, str(_PEERS / "eager_pytorch.py")]
    command += [f"--model={workload.model}", f"--sizes={json.dumps(workload.sizes)}"]
    command += [f"--batch_size={workload.batch_size}", f"--rounds={rounds}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            "The eager PyTorch loop did not run; install it with pip install -e '.[peers]' "
            f"({(done.stderr.strip().splitlines() or ['no message'])[-1]})."
        )
    return json.loads(done.stdout)


OPPONENTS = {"eager_pytorch": eager_pytorch}


def main():
    config_lib.require_known("workload", _WORKLOAD.value, WORKLOADS)
    for name in _AGAINST.value:
        config_lib.require_known("opponent", name, OPPONENTS)
    workload = WORKLOADS[_WORKLOAD.value]
    if workload.pool:
        if _NUM_CLIENTS.value < workload.cohort:
            raise UserError(f"--num_clients must be at least the cohort, {workload.cohort}.")
        if _AGAINST.value:
            raise UserError(f"The workload {_WORKLOAD.value} has no opponent; leave --against out.")
        workload = workload._replace(sizes=np.full(_NUM_CLIENTS.value, 20, np.int32))
    # Opponents first: they run in processes of their own, and nothing of ours is alive yet.
    peers = {name: OPPONENTS[name](workload, _ROUNDS.value) for name in _AGAINST.value}
    ours = measure(workload, flags.FLAGS.config.engine, _ROUNDS.value)
    figures = {"workload": _WORKLOAD.value, "date": time.strftime("%Y-%m-%d"), **ours}
    figures["opponents"] = {
        name: {
            **peer,
            "ratio": peer["median_seconds_per_round"] / ours["seconds_per_round"]["median"],
        }
        for name, peer in peers.items()
    }
    if _OUTPUT.value:
        writers.write_json(pathlib.Path(_OUTPUT.value), figures)
    _show(figures)


def _show(figures: dict) -> None:
    table = rich.table.Table(title=f"{figures['workload']}, {figures['platform']}")
    numbers = ("round (s)", "examples/s", "evaluation (s)", "compile (s)")
    for name in ("system", *numbers, "device (MB)", "host (MB)", "ratio"):
        table.add_column(name, justify="left" if name == "system" else "right")
    seconds = figures["seconds_per_round"]["median"]
    table.add_row(
        f"pfljax, {figures['num_devices']} devices",
        f"{seconds:.4f}",
        f"{figures['examples_per_second']:,.0f}",
        f"{figures['seconds_per_evaluation']['median']:.4f}",
        f"{figures['seconds_compile']['round']:.2f}",
        f"{(figures['peak_device_bytes'] or 0) / 1e6:,.1f}",
        f"{figures['peak_host_bytes'] / 1e6:,.0f}",
        "1",
    )
    for name, peer in figures["opponents"].items():
        table.add_row(
            name,
            f"{peer['median_seconds_per_round']:.4f}",
            f"{figures['examples_per_round'] / peer['median_seconds_per_round']:,.0f}",
            "",
            "",
            "",
            "",
            f"{peer['ratio']:.2f}",
        )
    binary.say(table)


if __name__ == "__main__":
    binary.run(main)
