"""What all baselines share: reading the work, making the examples, timing rounds, answering.

An adapter runs under the interpreter of its baseline, where pfljax need not be installed. It reads
the work as JSON from standard input and leaves the answer as the last line of standard output.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Work(NamedTuple):
    """Rounds of FedAvg: each client of a cohort trains for one epoch with plain SGD.

    Attributes:
      convolutions: of the network, each the features, the kernel's size, 'VALID' or 'SAME' padding
        and whether maxima of 2x2 follow; ReLU after each.
      widths: of its dense layers with ReLU, before a last one without.
      shape: of one example, `[H, W, c]`.
      num_classes: `C`.
      sizes: training examples of each client.
      batch_size: of local training.
      learning_rate: of the clients.
      cohorts: the clients of each round; the first one warms up and is not counted.
      setting: one of those that the adapter knows.
      test_sizes: test examples of each client, for those that evaluate.
      checkout: where the baseline's sources lie, for those that come as such.
    """

    convolutions: Sequence[tuple[int, int, str, bool]]
    widths: Sequence[int]
    shape: Sequence[int]
    num_classes: int
    sizes: Sequence[int]
    batch_size: int
    learning_rate: float
    cohorts: Sequence[Sequence[int]]
    setting: str
    test_sizes: Sequence[int] = ()
    checkout: str = ""


def read() -> Work:
    """Reads the work from standard input."""
    return Work(**json.load(sys.stdin))


def examples(work: Work) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Returns the examples of every client that takes part.

    Returns:
      For each client `[n, H, W, c]` float32, uniform in [-1, 1), and `[n]` int64 labels.
    """
    draw = np.random.default_rng(0)
    return {
        client: (
            draw.uniform(-1, 1, (work.sizes[client], *work.shape)).astype(np.float32),
            draw.integers(0, work.num_classes, work.sizes[client]),
        )
        for client in sorted({client for cohort in work.cohorts for client in cohort})
    }


def time_rounds(work: Work, play: Callable[[Sequence[int]], None]) -> tuple[list, list]:
    """Plays all rounds and times those that count.

    Args:
      work: whose cohorts they are.
      play: runs one round of a cohort to its end.

    Returns:
      For each round the seconds, and the seconds of all of this process's threads together.
    """
    seconds, of_threads = [], []
    for cohort in work.cohorts:
        begin, busy = time.perf_counter(), time.process_time()
        play(cohort)
        seconds.append(time.perf_counter() - begin)
        of_threads.append(time.process_time() - busy)
    return seconds[1:], of_threads[1:]


def answer(
    version: str,
    seconds: Sequence[float],
    of_threads: Sequence[float] = (),
    evaluations: Sequence[float] = (),
) -> None:
    """Prints the baseline's version and the seconds of its counted rounds; see `time_rounds`.

    Where several processes work, nobody knows `of_threads` round by round.
    """
    figures = {
        "version": version,
        "seconds": list(seconds),
        "processor_seconds": list(of_threads),
        "evaluation_seconds": list(evaluations),
    }
    print(json.dumps(figures), flush=True)
