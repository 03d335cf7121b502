"""Other systems on the same workload, each run in a separate process by an adapter in `peers/`."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

import numpy as np

from benchmarking.measuring import median_rate, spread
from benchmarking.workloads import Workload
from pfljax.errors import UserError
from pfljax.training.run import runtime
from pfljax.training.study import config_values

_PEERS = pathlib.Path(__file__).parents[1] / "peers"


class Baseline(NamedTuple):
    """A system to run beside pfljax.

    Attributes:
      adapter: The file in `peers/`, which runs with an interpreter that has the package.
      package: The name of the imported package.
      install: The arguments of `pip install`.
      settings: The settings of the adapter, with additional environment variables for each; all are
        run, and the fastest is reported.
      equal_sizes: Whether clients must have the same number of examples.
      checkout: A file that identifies a checkout of its sources; '' if pip installs it.
      workload: The only workload that it runs; '' for those of FedAvg.
    """

    adapter: str
    package: str
    install: str
    settings: dict[str, dict[str, str]]
    equal_sizes: bool = False
    checkout: str = ""
    workload: str = ""


# Products on the calling thread, not spread over all cores, as in `runtime.start`.
_XLA_ONE_THREAD = {
    "NPROC": "1",
    "XLA_FLAGS": " ".join(f"{flag}={value}" for flag, value in runtime.CPU_FLAGS.items()),
}


def _settings(*kinds: str) -> dict[str, dict[str, str]]:
    """Returns the settings of one thread and of all threads, each with some kinds of operations."""
    threads = ("one thread", "all threads")
    return {f"{number}, {kind}": {} for number in threads for kind in kinds}


BASELINES = {
    "eager_pytorch": Baseline(
        "eager_pytorch.py", "torch", "torch", {"one thread": {}, "all threads": {}}
    ),
    "fedjax": Baseline(
        "fedjax_fedavg.py",
        "fedjax",
        "fedjax",
        {"jit": {}, "jit, one thread": _XLA_ONE_THREAD, "pmap": _XLA_ONE_THREAD},
    ),
    "pfl": Baseline(
        "pfl_fedavg.py",
        "pfl",
        "pfl torch",
        {"one thread": {}, "all threads": {}, "processes": {}},
    ),
    "drjax": Baseline(
        "drjax_fedavg.py",
        "drjax",
        "drjax",
        {"one device": {}, "all devices": _XLA_ONE_THREAD},
        equal_sizes=True,
    ),
    "pfllib": Baseline(
        "pfllib_fedavg.py",
        "torchvision",
        "torch torchvision h5py scikit-learn matplotlib calmsize cvxpy",
        {"one thread": {"OMP_NUM_THREADS": "1"}, "all threads": {}},
        checkout="system/main.py",
    ),
    "flwr": Baseline("flwr_fedavg.py", "flwr", "'flwr[simulation]' torch", {"actors": {}}),
    "peft": Baseline(
        "peft_adapters.py",
        "peft",
        "peft transformers torch",
        _settings("fused attention", "eager attention"),
        workload="adapters",
    ),
    "torch_heads": Baseline(
        "torch_heads.py",
        "torch",
        "torch",
        _settings("plain AdamW", "fused AdamW"),
        workload="adapters",
    ),
}
# The environment before pfljax prepared this process.
_ENVIRONMENT = dict(os.environ)


def pythons(named: list[str]) -> dict[str, str]:
    """Returns the interpreter of each baseline.

    Args:
      named: `BASELINE=PYTHON` for some baselines; the others use the interpreter of this process.

    Raises:
      UserError: An entry has another form, or there is no such baseline or file.
    """
    chosen = dict.fromkeys(BASELINES, sys.executable)
    for text in named:
        name, _, python = text.partition("=")
        if not python:
            raise UserError(f"--peer_python={text} must have the form BASELINE=PYTHON.")
        config_values.require_known("baseline", name, BASELINES)
        if not pathlib.Path(python).is_file():
            raise UserError(f"--peer_python={text} is not a file; pass the path of an interpreter.")
        chosen[name] = python
    return chosen


def check(
    name: str, workload_name: str, workload: Workload | None, python: str, checkout: str = ""
) -> None:
    """Raises a `UserError` unless a baseline can run a workload with an interpreter.

    Args:
      name: The name of the baseline.
      workload_name: The name of the workload.
      workload: The workload, of which baselines run FedAvg, whatever its method; None for adapters.
      python: The interpreter.
      checkout: The directory of the sources of a baseline that runs from a checkout.
    """
    config_values.require_known("baseline", name, BASELINES)
    baseline = BASELINES[name]
    if baseline.checkout and not (pathlib.Path(checkout) / baseline.checkout).is_file():
        raise UserError(
            f"The baseline {name} runs from a checkout, but {checkout or 'no directory'!r} has no "
            f"{baseline.checkout}; pass one with --{name}_dir=DIR."
        )
    if (baseline.workload or workload_name) != workload_name or (
        workload is None and not baseline.workload
    ):
        runs = baseline.workload or "workloads of FedAvg"
        raise UserError(f"The baseline {name} runs {runs} only; remove it from --against.")
    if workload is not None:
        _require_fit(name, workload_name, workload)
    look = f"import importlib.util as u, sys; sys.exit(u.find_spec({baseline.package!r}) is None)"
    if subprocess.run([python, "-c", look], capture_output=True).returncode:
        raise UserError(
            f"The baseline {name} is not installed for {python}; run {python} -m pip install "
            f"{baseline.install}, or choose another with --peer_python={name}=PYTHON."
        )


def _require_fit(name: str, workload_name: str, workload: Workload) -> None:
    """Raises a `UserError` for a workload that a baseline of FedAvg cannot run."""
    if workload.pool or workload.cohorts:
        raise UserError(
            f"The workload {workload_name} is compared with itself only; remove --against."
        )
    if BASELINES[name].equal_sizes and len(set(workload.sizes)) > 1:
        raise UserError(
            f"The baseline {name} needs clients of equal size, which the workload "
            f"{workload_name} does not have; use r1."
        )


def run(name: str, workload: Workload, rounds: int, python: str, checkout: str = "") -> dict:
    """Runs a baseline in all its settings.

    Args:
      name: A key of `BASELINES`.
      workload: The workload to train.
      rounds: Number of timed rounds, after one warm-up round.
      python: The interpreter.
      checkout: The directory of its sources, if it runs from a checkout.

    Returns:
      The figures of all settings; those of the fastest are at the top level.

    Raises:
      UserError: The baseline failed.
    """
    sizes = np.asarray(workload.sizes)
    draw = np.random.default_rng(1)
    all_clients = list(range(len(sizes)))
    cohorts = [
        draw.choice(len(sizes), workload.cohort, replace=False).tolist()
        if workload.cohort
        else all_clients
        for _ in range(rounds + 1)
    ]
    examples = [int(np.sum(sizes[cohort])) for cohort in cohorts[1:]]
    work = {
        "convolutions": workload.network.convolutions,
        "widths": workload.network.widths,
        "shape": workload.shape,
        "num_classes": workload.num_classes,
        "sizes": sizes.tolist(),
        "batch_size": workload.batch_size,
        "learning_rate": workload.learning_rate,
        "cohorts": cohorts,
        "test_sizes": (sizes // workload.train_per_test).tolist(),
        "checkout": checkout,
    }
    settings = {}
    for setting in BASELINES[name].settings:
        found = answer(name, {**work, "setting": setting}, python)
        version = found["version"]
        settings[setting] = {
            "seconds_per_round": spread(found["seconds"]),
            "processor_seconds_per_round": spread(found["processor_seconds"]),
            "seconds_per_evaluation": spread(found.get("evaluation_seconds", [])),
            "examples_per_second": median_rate(examples, found["seconds"]),
        }
    best = max(settings, key=lambda setting: settings[setting]["examples_per_second"])
    return {
        "system": name,
        "version": version,
        "setting": best,
        **settings[best],
        "settings": settings,
    }


def answer(name: str, work: dict, python: str) -> dict:
    """Runs a baseline in one setting.

    Args:
      name: A key of `BASELINES`.
      work: The input of its adapter, with the setting.
      python: The interpreter.

    Returns:
      What the adapter printed; see `peers/peer.py`.

    Raises:
      UserError: The baseline failed.
    """
    command = [python, str(_PEERS / BASELINES[name].adapter)]
    done = subprocess.run(
        command,
        input=json.dumps(work),
        env={**_ENVIRONMENT, **BASELINES[name].settings[work["setting"]]},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        said = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)] or lines
        raise UserError(f"The baseline {name} with {work['setting']!r} did not run: {said[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
