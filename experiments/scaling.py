"""Weak scaling: a fixed number of clients per device, on an increasing number of devices.

    python experiments/scaling.py --devices=1,2,4,8 --clients_per_device=8 --algorithm=fedavg

Each device trains the same number of clients of equal size, sampled from `--population` times as
many. The computation per device is then constant, and its communication is counted from the traced
program, with the buckets of migrated states that its rounds need. On a CPU, devices beyond the
number of cores share the cores: `work` is the time of a round times the number of busy cores,
divided by the number of devices, and should not grow. Each number of devices is measured in a
separate process, as a process with unused devices is slower.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import rich.table
from absl import flags
from benchmarking.networks import NETWORKS
from benchmarking.workloads import Workload, synthetic

from pfljax.cli import app
from pfljax.engine import round, sampling
from pfljax.engine.accounting import collectives
from pfljax.engine.clients import migration
from pfljax.errors import UserError
from pfljax.training.run import runtime
from pfljax.training.study import config as config_lib
from pfljax.training.study import config_values, experiment

_DEVICES = flags.DEFINE_list("devices", ["1", "2", "4", "8"], "Numbers of devices to try.")
_CLIENTS = flags.DEFINE_integer("clients_per_device", 8, "Clients of each device in a round.")
_POPULATION = flags.DEFINE_integer("population", 4, "Clients for each one in a round.")
_SIZE = flags.DEFINE_integer("examples", 200, "Training examples of each client.")
_ALGORITHM = flags.DEFINE_string("algorithm", "fedavg", "A method of `ALGORITHMS`.")
_MODEL = flags.DEFINE_string("model", "mlp", "A model for 28x28 images.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed rounds.")
_JSON = flags.DEFINE_bool("json", False, "Print the figures of one number of devices as JSON.")


def clients(count: int, size: int) -> Workload:
    """Returns clients of one size, whose pixels and labels are drawn uniformly from one pool."""
    return Workload(
        "weak scaling", NETWORKS["mlp"], [size] * count, (28, 28, 1), 10, 10, pool=2 * size
    )


def measure(devices: int) -> dict:
    """Returns the seconds of a round, the busy cores, buckets and bytes of `Communication`."""
    runtime.start(devices=devices)
    config = config_lib.default_config()
    config.algorithm, config.model.name = _ALGORITHM.value, _MODEL.value
    config.engine.devices, config.engine.rounds_per_call = devices, 1
    config.engine.clients_per_chunk = "1" if jax.devices()[0].platform == "cpu" else "auto"
    config.cohort.size = _CLIENTS.value * devices
    workload = clients(_POPULATION.value * config.cohort.size, _SIZE.value)
    built = experiment.build(config, synthetic(workload))
    state = built.programs.init(built.examples, jax.random.key(0))
    rounds = np.int32(_ROUNDS.value), np.int32(1)
    sent = collectives.count(built.programs.run_rounds, state, built.examples, *rounds)
    seconds = []
    for _ in range(_ROUNDS.value + 1):
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(built.programs.run_rounds(state, built.examples, *rounds))
        seconds.append(time.perf_counter() - begin)
    on_cpu = jax.devices()[0].platform == "cpu"
    at_work = min(devices, runtime.available_cores()) if on_cpu else devices
    return {
        "seconds": statistics.median(seconds[1:]),
        "at_work": at_work,
        "buckets": buckets(built) if jax.tree.leaves(state.clients) else 0,
        **sent._asdict(),
    }


def buckets(built: experiment.Experiment) -> float:
    """Returns the mean number of buckets of migrated states in the timed rounds."""
    found = []
    for number in range(_ROUNDS.value + 1):
        ids = sampling.sample(built.plan, round.cohort_key(jax.random.key(0), np.int32(number)))
        assignment = sampling.assign(
            ids,
            jnp.full_like(ids, _SIZE.value),
            num_devices=len(built.devices),
            chunk=built.clients_per_chunk,
            at_home=True,
        )
        found.append(int(migration.num_buckets(assignment)))
    return statistics.fmean(found[1:])


def measure_in_process(devices: int) -> dict:
    """Returns the result of `measure` in a separate process."""
    command = [sys.executable, *sys.argv, f"--devices={devices}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{devices} devices: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def numbers() -> list[int]:
    """Returns the numbers of devices to try; raises a `UserError` for invalid ones."""
    words = _DEVICES.value
    if not words or not all(word.isdigit() and int(word) > 0 for word in words):
        raise UserError(
            f"--devices={','.join(words)} is not a list of numbers; write --devices=1,2."
        )
    config_values.require_known("algorithm", _ALGORITHM.value, config_lib.ALGORITHMS)
    return [int(word) for word in words]


def main():
    tried = numbers()
    if _JSON.value:
        print(json.dumps(measure(*tried)))
        return
    table = rich.table.Table(
        title=f"{_ALGORITHM.value}, {_MODEL.value}, {_CLIENTS.value} clients of {_SIZE.value} "
        "examples for each device"
    )
    for name in (
        "devices",
        "clients",
        "round (s)",
        "work (s)",
        "all-reduced (kB)",
        "gathered (kB)",
    ):
        table.add_column(name, justify="right")
    for name in ("buckets", "bucket, both ways (kB)", "sent per device (kB)"):
        table.add_column(name, justify="right")
    for devices in tried:
        found = measure_in_process(devices)
        seconds, at_work = found["seconds"], found["at_work"]
        fields = collectives.Communication._fields
        sent = collectives.Communication(*(found[field] for field in fields))
        all_buckets = sent._replace(exchanged=found["buckets"] * sent.exchanged)
        sums, copies, bucket, sends = (
            f"{value / 1e3:,.1f}" for value in (*sent, all_buckets.sent(devices))
        )
        table.add_row(
            *(str(devices), str(devices * _CLIENTS.value), f"{seconds:.4f}"),
            f"{seconds * at_work / devices:.4f}",
            *(sums, copies, f"{found['buckets']:.1f}", bucket, sends),
        )
    app.say(table)


if __name__ == "__main__":
    app.run(main)
