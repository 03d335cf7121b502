"""Compiles the programs of several runs at once, in threads.

XLA compiles without the interpreter lock. Programs are traced in the main thread, while those
before them are compiled. Those of several methods are compiled before the first of them runs, so
that the seconds of rounds are measured on an idle machine.
"""

from __future__ import annotations

import concurrent.futures
import gc
import pathlib
import threading
from collections.abc import Sequence

import jax
import numpy as np

from pfljax.training.run import runtime
from pfljax.training.run.clock import first_key
from pfljax.training.study.config_runs import planned_rounds
from pfljax.training.study.experiment import Experiment

_NAME = "pfljax-compile"
# XLA uses several threads for one program, and memory for each program.
_MOST_THREADS = 8
# Programs are freed once they take this part of the regions of memory that Linux allows a process,
# 65,530 by default. A method takes some 2,800 with a small convolutional network, for each size of
# its data, and a process that has used them up crashes.
_PART_OF_REGIONS = 0.4
_REGIONS = pathlib.Path("/proc/self/maps")
_MOST_REGIONS = pathlib.Path("/proc/sys/vm/max_map_count")
# Number of experiments whose programs are compiled while the next one's are traced.
_AHEAD = 4


def programs_fill_memory() -> bool:
    """Whether programs should be freed before more are compiled; False without these files."""
    try:
        most = int(_MOST_REGIONS.read_text())
        with _REGIONS.open("rb") as regions:
            return sum(1 for _ in regions) > _PART_OF_REGIONS * most
    except (OSError, ValueError):  # not Linux, or no limit
        return False


def free_programs() -> None:
    """Frees the compiled programs to which no experiment refers any more, JAX's own copies too."""
    gc.collect()
    jax.clear_caches()


def compile_all(experiments: Sequence[Experiment]) -> int:
    """Compiles the programs of experiments, as many at once as there are cores.

    Programs that were compiled before are only traced. With several processes, nothing is done:
    each program is compiled at its first use, in the same order by all processes.

    Args:
      experiments: Experiments with clients on the devices.

    Returns:
      The number of experiments until the programs filled the memory, at least one; the programs of
      the others are not compiled. With several processes one, so that no more are kept.
    """
    if jax.process_count() > 1:
        return min(1, len(experiments))
    threads = concurrent.futures.ThreadPoolExecutor(
        min(runtime.available_cores(), _MOST_THREADS), thread_name_prefix=_NAME
    )
    started: list[list[concurrent.futures.Future]] = []
    try:
        for one in experiments:
            started.append(_start(one, threads))
            # Tracing is faster than compiling, and only compiled programs take memory.
            if len(started) > _AHEAD:
                _wait(started[-1 - _AHEAD])
            if programs_fill_memory():
                break
        for each in started:
            _wait(each)
    finally:
        # After an interruption, a program that is being compiled is neither awaited nor used.
        threads.shutdown(wait=False, cancel_futures=True)
    return len(started)


def _wait(started: Sequence[concurrent.futures.Future]) -> None:
    for future in started:
        future.result()


def is_active() -> bool:
    """Whether programs are being compiled in threads, for which a normal exit would wait."""
    return any(thread.name.startswith(_NAME) for thread in threading.enumerate())


def _start(
    experiment: Experiment, threads: concurrent.futures.Executor
) -> list[concurrent.futures.Future]:
    init, run_rounds, evaluate = experiment.programs
    examples, planned = experiment.examples, np.int32(planned_rounds(experiment.config))
    key = first_key(experiment, [experiment.config.seed] * (experiment.num_runs or 1))
    first, state = init.start_compiling(threads, examples, key)
    rounds, _ = run_rounds.start_compiling(threads, state, examples, planned, np.int32(1))
    evaluation, _ = evaluate.start_compiling(threads, state, examples, planned)
    return [first, rounds, evaluation]
