"""PFLlib's FedAvg: its own program, from a checkout, on clients written in its format.

PFLlib evaluates before a round and includes that in its time. Therefore the rounds are timed
without evaluations, and again with one each; the difference is the evaluation of all clients' test
and training examples.
"""

from __future__ import annotations

import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import peer

# PFLlib's networks for 28x28 images, by the names of ours.
_MODELS = {
    ((), ()): "MLR",
    ((), (100,)): "DNN",
    (((32, 5, "VALID", True), (64, 5, "VALID", True)), (512,)): "CNN",
}
_NEVER = 10**6


def model(work: peer.Work) -> str:
    """Returns the name of the network in PFLlib."""
    network = tuple(tuple(one) for one in work.convolutions), tuple(work.widths)
    if tuple(work.shape) != (28, 28, 1) or network not in _MODELS:
        raise ValueError("PFLlib has no such network for these examples")
    if any(len(cohort) != len(work.sizes) for cohort in work.cohorts):
        raise ValueError("PFLlib samples its own cohorts; use a workload with full participation")
    return _MODELS[network]


def write(work: peer.Work, folder: pathlib.Path) -> None:
    """Writes all clients' training and test examples in PFLlib's format."""
    draw = np.random.default_rng(0)
    for part, sizes in (("train", work.sizes), ("test", work.test_sizes)):
        (folder / part).mkdir(parents=True)
        for client, size in enumerate(sizes):
            data = {
                "x": draw.uniform(-1, 1, (size, 1, 28, 28)).astype(np.float32),
                "y": draw.integers(0, work.num_classes, size),
            }
            with (folder / part / f"{client}.npz").open("wb") as file:
                np.savez_compressed(file, data=data)


def seconds_of_rounds(
    work: peer.Work, network: str, directory: pathlib.Path, every: int
) -> list[float]:
    """Runs PFLlib and returns the seconds of its rounds except the first.

    Args:
      work: The input.
      network: The name of the network in PFLlib.
      directory: The working directory of the program.
      every: Number of rounds between evaluations.
    """
    options = {
        **{"-data": "MNIST", "-ncl": work.num_classes, "-m": network, "-algo": "FedAvg"},
        **{"-gr": len(work.cohorts) - 1, "-nc": len(work.sizes), "-lbs": work.batch_size},
        **{"-lr": work.learning_rate, "-ls": 1, "-eg": every, "-dev": "cpu"},
    }
    program = pathlib.Path(work.checkout).resolve() / "system" / "main.py"
    words = [str(word) for pair in options.items() for word in pair]
    done = subprocess.run(
        [sys.executable, str(program), *words], cwd=directory, capture_output=True, text=True
    )
    costs = re.findall(r"time cost -+ ([\d.e-]+)", done.stdout)
    if len(costs) < len(work.cohorts):
        lines = done.stderr.strip().splitlines() or ["it printed no times"]
        raise RuntimeError(f"PFLlib stopped: {lines[-1]}")
    return [float(cost) for cost in costs[1 : len(work.cohorts)]]


def main():
    work = peer.read()
    network = model(work)
    with tempfile.TemporaryDirectory() as folder:
        directory = pathlib.Path(folder) / "system"
        directory.mkdir()
        write(work, directory.parent / "dataset" / "MNIST")
        without = seconds_of_rounds(work, network, directory, _NEVER)
        evaluated = seconds_of_rounds(work, network, directory, 1)
    usual = statistics.median(without)
    peer.answer("checkout", without, evaluations=[seconds - usual for seconds in evaluated])


if __name__ == "__main__":
    main()
