"""The common part of all adapters: input, examples, timing and output.

An adapter runs with the interpreter of its baseline, where pfljax need not be installed. It reads
its input as JSON from standard input and prints its output as the last line of standard output.
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
      convolutions: The features, kernel size, 'VALID' or 'SAME' padding and whether 2x2 max-pooling
        follows, for each convolution; ReLU after each.
      widths: The widths of the dense layers with ReLU, before a last one without.
      shape: The shape `[H, W, c]` of one example.
      num_classes: `C`.
      sizes: The number of training examples of each client.
      batch_size: The batch size of local training.
      learning_rate: The learning rate of the clients.
      cohorts: The clients of each round; the first round is a warm-up and not timed.
      setting: One of the adapter's settings.
      test_sizes: The number of test examples of each client, for baselines that evaluate.
      checkout: The directory of the baseline's sources, for baselines that run from a checkout.
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


class Users(NamedTuple):
    """Users who train one after another, each an adapter or a head on some ratings of texts.

    Attributes:
      vocabulary: Number of ids of tokens.
      length: Number of tokens of a text.
      texts: Number of texts.
      width: The width of the network.
      layers: Number of its layers.
      heads: Number of heads of each attention.
      features: Number of features of a text, for baselines that train heads on features.
      num_classes: Number of different ratings.
      ratings: Number of ratings of a user.
      steps: Number of steps that a user trains.
      batch_size: Number of ratings in a step.
      rank: The rank of LoRA.
      alpha: The scale of LoRA, `alpha / rank`.
      learning_rate: The learning rate of AdamW.
      cohorts: The users of each round; the first round is a warm-up and not timed.
      setting: One of the adapter's settings.
    """

    vocabulary: int
    length: int
    texts: int
    width: int
    layers: int
    heads: int
    features: int
    num_classes: int
    ratings: int
    steps: int
    batch_size: int
    rank: int
    alpha: float
    learning_rate: float
    cohorts: Sequence[Sequence[int]]
    setting: str


def read() -> Work:
    """Reads the input from standard input."""
    return Work(**json.load(sys.stdin))


def read_users() -> Users:
    """Reads the input of a baseline of adapters from standard input."""
    return Users(**json.load(sys.stdin))


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


def time_rounds(work: Work | Users, play: Callable[[Sequence[int]], None]) -> tuple[list, list]:
    """Runs all rounds and times all but the first.

    Args:
      work: The input, with the cohorts.
      play: Runs one round of a cohort to its end.

    Returns:
      The seconds of each round, and its CPU time over all threads of this process.
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
    """Prints the version of the baseline and the results of `time_rounds`.

    For several processes, the CPU time `of_threads` of a round is unknown.
    """
    figures = {
        "version": version,
        "seconds": list(seconds),
        "processor_seconds": list(of_threads),
        "evaluation_seconds": list(evaluations),
    }
    print(json.dumps(figures), flush=True)
