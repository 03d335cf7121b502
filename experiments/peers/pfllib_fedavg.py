"""FedAvg by PFLlib: its own program, from a checkout, on clients written in its layout.

It evaluates before a round, and counts that as part of it. So the rounds are timed without
evaluations, then with one each, and the difference is the evaluation of all clients' test and
training examples.
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

# Its networks for 28x28 images, by ours.
_MODELS = {
    ((), ()): "MLR",
    ((), (100,)): "DNN",
    (((32, 5, "VALID", True), (64, 5, "VALID", True)), (512,)): "CNN",
}
_NEVER = 10**6


def model(work: peer.Work) -> str:
    """Returns what PFLlib calls the network."""
    network = tuple(tuple(one) for one in work.convolutions), tuple(work.widths)
    if tuple(work.shape) != (28, 28, 1) or network not in _MODELS:
        raise ValueError("PFLlib has no such network for such examples")
    if any(len(cohort) != len(work.sizes) for cohort in work.cohorts):
        raise ValueError("cohorts of PFLlib are drawn by itself; take a workload of all clients")
    return _MODELS[network]


def write(work: peer.Work, folder: pathlib.Path) -> None:
    """Writes all clients' training and test examples in PFLlib's layout."""
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
    work: peer.Work, network: str, place: pathlib.Path, every: int
) -> list[float]:
    """Runs PFLlib and returns the seconds of its rounds but for the first.

    Args:
      work: what to train.
      network: as PFLlib calls it.
      place: the folder where its program believes to be.
      every: rounds from one evaluation to the next.
    """
    options = {
        **{"-data": "MNIST", "-ncl": work.num_classes, "-m": network, "-algo": "FedAvg"},
        **{"-gr": len(work.cohorts) - 1, "-nc": len(work.sizes), "-lbs": work.batch_size},
        **{"-lr": work.learning_rate, "-ls": 1, "-eg": every, "-dev": "cpu"},
    }
    program = pathlib.Path(work.checkout).resolve() / "system" / "main.py"
    words = [str(word) for pair in options.items() for word in pair]
    done = subprocess.run(
        [sys.executable, str(program), *words], cwd=place, capture_output=True, text=True
    )
    costs = re.findall(r"time cost -+ ([\d.e-]+)", done.stdout)
    if len(costs) < len(work.cohorts):
        lines = done.stderr.strip().splitlines() or ["it told no time"]
        raise RuntimeError(f"PFLlib stopped: {lines[-1]}")
    return [float(cost) for cost in costs[1 : len(work.cohorts)]]


def main():
    work = peer.read()
    network = model(work)
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder) / "system"
        place.mkdir()
        write(work, place.parent / "dataset" / "MNIST")
        alone = seconds_of_rounds(work, network, place, _NEVER)
        evaluated = seconds_of_rounds(work, network, place, 1)
    usual = statistics.median(alone)
    peer.answer("checkout", alone, evaluations=[seconds - usual for seconds in evaluated])


if __name__ == "__main__":
    main()
