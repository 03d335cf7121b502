"""Times rounds and evaluations, and counts what they compile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.core import FederatedState
from pfljax.training.run import runtime
from pfljax.training.study.config_runs import planned_rounds
from pfljax.training.study.experiment import Experiment


class Clock:
    """Runs the programs of an experiment and measures them; must be closed.

    For vectorized runs, seconds are divided by the number of runs.

    Attributes:
      compile_seconds: The seconds of all compilations.
      round_compilations: Number of programs compiled by calls of the round program; 1 if all calls
        share one program.
      later_compilations: Number of programs compiled after the first call of the round program.
    """

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._num_runs = experiment.num_runs or 1
        self._counter = runtime.CompilationCounter()
        self._round_seconds: list[float] = []
        self._evaluation_seconds: list[float] = []
        self._examples = 0.0
        self._slots = 0.0
        self._rounds = 0
        # Clients do not pass over their examples once in each epoch, as these figures assume.
        self._by_steps = experiment.config.local_steps > 0
        self.compile_seconds = 0.0
        self.round_compilations = 0
        self.later_compilations = 0

    def init(self, seeds: Sequence[int]) -> FederatedState:
        """Returns the state of round 0, of one run or of vectorized runs."""
        experiment = self._experiment
        key = first_key(experiment, seeds)
        return self._timed(experiment.programs.init, experiment.examples, key)[0]

    def run_rounds(
        self, state: FederatedState, now: int
    ) -> tuple[FederatedState, dict[str, np.ndarray]]:
        """Runs `now` rounds; returns the state and the metrics, `[..., now]` each."""
        experiment = self._experiment
        first = not self._round_seconds
        (state, history), seconds, compiled = self._timed(
            experiment.programs.run_rounds,
            state,
            experiment.examples,
            np.int32(planned_rounds(experiment.config)),
            np.int32(now),
        )
        history = {name: np.asarray(values)[..., :now] for name, values in history.items()}
        self._round_seconds.append(seconds / now / self._num_runs)
        self.round_compilations += compiled
        self.later_compilations += 0 if first else compiled
        self._examples += float(np.sum(history["examples"]))
        self._slots += float(np.sum(history["slots"]))
        self._rounds += now * self._num_runs
        return state, history

    def evaluate(self, state: FederatedState) -> dict[str, Any]:
        """Evaluates all clients; see `engine.programs.build_evaluation` for the result."""
        experiment = self._experiment
        scores, seconds, compiled = self._timed(
            experiment.programs.evaluate,
            state,
            experiment.examples,
            np.int32(planned_rounds(experiment.config)),
        )
        self.later_compilations += compiled if self._evaluation_seconds else 0
        self._evaluation_seconds.append(seconds / self._num_runs)
        return jax.tree.map(np.asarray, scores)

    def _timed(self, program: Callable, *args: Any) -> tuple[Any, float, int]:
        """Runs a program; returns its result, its seconds, and its number of compilations."""
        before, in_threads = self._counter.programs, 0
        if program.compile_seconds == 0:
            program.compile(*args)
            self.compile_seconds += program.compile_seconds
            in_threads = program.compilations_in_threads
        begin = time.perf_counter()
        result = jax.block_until_ready(program(*args))
        seconds = time.perf_counter() - begin
        return result, seconds, self._counter.programs - before + in_threads

    @property
    def seconds_per_round(self) -> float | None:
        """The median; the first call also loads the program and is excluded if there are others."""
        return _median(self._round_seconds)

    @property
    def seconds_per_evaluation(self) -> float | None:
        """The median, like `seconds_per_round`."""
        return _median(self._evaluation_seconds)

    @property
    def examples_per_second(self) -> float | None:
        """Training examples of a round divided by its seconds; None for a number of local steps."""
        if self._by_steps or not self._rounds or not self.seconds_per_round:
            return None
        return self._examples / self._rounds / self.seconds_per_round

    @property
    def padding_fraction(self) -> float | None:
        """The fraction of the work that is padding; None for a number of local steps."""
        if self._by_steps or not self._slots:
            return None
        return 1 - self._examples / self._slots

    def close(self) -> None:
        """Stops counting compilations."""
        self._counter.close()


def first_key(experiment: Experiment, seeds: Sequence[int]) -> jax.Array:
    """Returns the key of round 0: `[]` of one run, `[runs]` of vectorized runs."""
    keys = [jax.random.key(seed) for seed in seeds]
    return keys[0] if experiment.num_runs is None else jnp.stack(keys)


def _median(seconds: list[float]) -> float | None:
    return statistics.median(seconds[1:] or seconds) if seconds else None
