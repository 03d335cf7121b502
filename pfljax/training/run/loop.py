"""The loop of a run: rounds, evaluations, checkpoints and the files of the work directory."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from pfljax.core import FederatedState
from pfljax.data import FederatedDataset
from pfljax.engine import init, programs, used_arguments
from pfljax.engine.round import ALL_FINITE
from pfljax.errors import DivergedError, UserError
from pfljax.training.run import checkpoint, locks, provenance, results, workdir, writers
from pfljax.training.run.checkpoint import Checkpoints, Restored
from pfljax.training.run.clock import Clock
from pfljax.training.run.stopping import Stopped, StopRequests
from pfljax.training.study import config_runs, schedules
from pfljax.training.study.experiment import Experiment

# Called after every call of the round program: (rounds done, scores so far).
Progress = Callable[[int, dict[str, float]], None]


def run(
    experiment: Experiment,
    directory: pathlib.Path,
    *,
    resume: bool = False,
    progress: Progress = lambda rounds, scores: None,
) -> dict[str, Any]:
    """Trains and evaluates one method, and writes the results.

    Args:
      experiment: The experiment to run.
      directory: The work directory; created if missing.
      resume: Whether to resume from the latest checkpoint, if any.
      progress: Called after every call of the round program, with rounds done and scores.

    Returns:
      The content of `result.json`.

    Raises:
      UserError: The directory contains another run.
      DivergedError: A state or a loss is not finite.
      Stopped: A signal stopped the run; a checkpoint is saved.
    """
    runs = [_Run(experiment, directory)]
    _train(experiment, runs, resume, progress)
    return runs[0].summary


def run_vectorized(
    experiment: Experiment,
    configs: Sequence[ml_collections.ConfigDict],
    directories: Sequence[pathlib.Path],
    datasets: Sequence[FederatedDataset] | None = None,
    *,
    resume: bool = False,
    progress: Progress = lambda rounds, scores: None,
) -> list[dict[str, Any] | None]:
    """Trains several runs in one program; each writes the files of a separate run.

    Args:
      experiment: The result of `vectorized.build(configs)`.
      configs: The configs of the runs.
      directories: The work directories of the runs.
      datasets: The data sets of the runs; None if they share one.
      resume: Whether to resume from the latest checkpoints, if all are of the same round.
      progress: Called after every call of the round program, with rounds done and mean scores.

    Returns:
      The content of each `result.json`; None for a run that diverged.

    Raises:
      UserError: A directory contains another run.
      DivergedError: All runs diverged.
      Stopped: A signal stopped the runs; checkpoints are saved.
    """
    datasets = datasets or [experiment.dataset] * len(configs)
    runs = [
        _Run(experiment._replace(config=config, dataset=dataset), directory)
        for config, directory, dataset in zip(configs, directories, datasets, strict=True)
    ]
    _train(experiment, runs, resume, progress)
    return [None if run.diverged else run.summary for run in runs]


def check_plan(experiment: Experiment, directory: pathlib.Path) -> None:
    """Raises a `UserError` if the planned length differs from the run's and its method uses it.

    Args:
      experiment: The experiment to resume.
      directory: The work directory, which may contain an earlier part of the run.
    """
    before, now = workdir.planned_before(directory), config_runs.planned_rounds(experiment.config)
    if before in (None, now):
        return
    population, examples = experiment.store.example_shapes()

    def by_method(algorithm):
        server, _ = jax.eval_shape(functools.partial(init.first_states, algorithm), population)
        return used_arguments.uses_planned_length(algorithm, server, examples)

    by_schedule = schedules.uses_planned_rounds(experiment.config)
    if by_schedule or any(by_method(method.algorithm) for method in experiment.methods):
        name = experiment.config.algorithm
        raise UserError(
            f"{directory} contains a run planned for {before} rounds, but this one is planned for "
            f"{now}; the steps of {name} depend on the planned length. Add "
            f"--config.planned_rounds={before} to keep it, or choose another --workdir."
        )


class _Run:
    """The files of one run, single or vectorized.

    Attributes:
      checkpoints: The latest checkpoints of the run; None before `claim`.
      best: The checkpoint of the round with the best validation score, and of the best round before
        each of the latest checkpoints, from which the run may be resumed; None for none.
      saved: The round of the latest checkpoint in the directory, whose arrays may be damaged, or of
        the latest one saved since; None for none.
      rows: The rows of `metrics.jsonl`.
      diverged: The reason why the run has ended; None while it continues.
      summary: The content of `result.json`, set at the end.
    """

    def __init__(self, experiment: Experiment, directory: pathlib.Path):
        self.experiment, self.directory = experiment, directory
        self.checkpoints: Checkpoints | None = None
        self.best: Checkpoints | None = None
        self.saved: int | None = None
        self.rows: list[dict[str, Any]] = []
        self.diverged: str | None = None
        self.summary: dict[str, Any] | None = None
        self._writer = None
        self._evaluation = None
        self._lock, self._files = contextlib.ExitStack(), contextlib.ExitStack()

    def claim(self, resume: bool) -> None:
        """Locks the work directory, and finds the round to resume from."""
        workdir.check(self.directory, self.experiment.config, resume=resume)
        self._lock.enter_context(locks.hold(self.directory))
        check_plan(self.experiment, self.directory)
        workdir.claim(self.directory, self.experiment.config, resume=resume)
        workdir.keep_clients_per_chunk(self.directory, self.experiment.clients_per_chunk)
        store = self.experiment.store
        transfers = {"to_host": store.to_host, "to_devices": store.to_devices}
        self.checkpoints = Checkpoints(self.directory / checkpoint.LATEST, **transfers)
        self._files.callback(self.checkpoints.close)
        if self.experiment.config.keep_best:
            self.best = Checkpoints(self.directory / checkpoint.BEST, None, **transfers)
            self._files.callback(self.best.close)
        self.saved = self.checkpoints.latest_round() if resume else None

    def begin(self, notes: dict[str, Any]) -> dict[str, np.ndarray]:
        """Opens the files, with the rows of the finished rounds.

        Args:
          notes: The notes of the checkpoint to resume from; empty for none.

        Returns:
          The metrics of the last call before that checkpoint.
        """
        self.rows = list(notes.get("rows", []))
        self._remove_worse()
        if jax.process_index() == 0:
            self._writer = writers.MetricsWriter(self.directory, self.rows)
            self._files.callback(self._writer.close)
        history = notes.get("history", {})
        return {name: np.asarray(values, dtype) for name, (dtype, values) in history.items()}

    def save(self, state: FederatedState, history: dict[str, np.ndarray], done: int) -> None:
        """Saves a checkpoint, from which all other files of the directory can be rewritten.

        Args:
          state: The state, with client states as in a checkpoint.
          history: The metrics of the last call of the round program, for the row of this round if
            it has not been written yet.
          done: Number of finished rounds.
        """
        if self.best is not None:
            self.best.wait()  # A run resumed from this checkpoint needs that of its best round.
        self._save(self.checkpoints, state, history)
        self.saved = done
        self._remove_worse()

    def is_best(self, done: int) -> bool:
        """Whether this round has the best validation score so far, and no checkpoint for it."""
        if self.best is None or self.diverged or done in self.best.rounds():
            return False
        return results.best_round(self.experiment.task, self.rows) == done

    def save_best(self, state: FederatedState, history: dict[str, np.ndarray]) -> None:
        """Saves the checkpoint of the best round so far; see `save`."""
        self._save(self.best, state, history)
        self._remove_worse()

    def _save(
        self, checkpoints: Checkpoints, state: FederatedState, history: dict[str, np.ndarray]
    ) -> None:
        notes = {
            "settings": workdir.settings(self.experiment.config),
            "clients_per_chunk": self.experiment.clients_per_chunk,
            "rows": self.rows,
            "frozen": self.experiment.frozen_digest,
            "history": {
                name: (values.dtype.name, values.tolist()) for name, values in history.items()
            },
        }
        checkpoints.save(state, self.experiment.dataset.num_clients, notes)

    def _remove_worse(self) -> None:
        """Removes checkpoints of rounds that are not the best one, now or for a resumed run."""
        if self.best is None:
            return
        task, needed = self.experiment.task, {results.best_round(self.experiment.task, self.rows)}
        for saved in self.checkpoints.rounds():
            until = [row for row in self.rows if row["round"] <= saved]
            needed.add(results.best_round(task, until))
        self.best.remove(sorted(set(self.best.rounds()) - needed))

    def diverge(self, round: int, what: str) -> None:
        """Ends the run, with the reason in `result.json` in place of scores."""
        saved = self.checkpoints.latest_round()
        kept = f"the checkpoint of round {saved} is kept" if saved else "no checkpoint was saved"
        config = self.experiment.config
        own = config.learning_rates[config.algorithm] is not None
        rate = f"learning_rates.{config.algorithm}" if own else "client_optimizer.learning_rate"
        self.diverged = (
            f"{config.algorithm} diverged: {what} in round {round}; lower config.{rate} or the "
            f"method's hyper-parameters ({kept})."
        )
        self.summary = results.of_diverged(self.experiment, round, self.diverged)
        if jax.process_index() == 0:
            writers.write_json(self.directory / "result.json", self.summary)

    def record(self, done: int, evaluation: Any, history: dict[str, np.ndarray]) -> None:
        """Writes a row, unless it was written before a resumption, or a loss is not finite."""
        if (found := results.first_not_finite(self.experiment, evaluation)) is not None:
            self.diverge(done, found)
            return
        self._evaluation = evaluation
        if not self.rows or self.rows[-1]["round"] < done:
            self.rows.append(results.metrics_row(self.experiment, done, evaluation, history))
            if self._writer:
                self._writer.write(self.rows[-1])

    def finish(self, clock: Clock) -> None:
        """Writes `clients.npz` and then `result.json`, which contains its checksum."""
        self._files.close()
        self.summary = results.summarize(self.experiment, self.rows, clock)
        if jax.process_index() == 0:
            clients, rows = self.directory / "clients.npz", self.directory / "metrics.jsonl"
            results.write_clients(clients, self.experiment, self._evaluation)
            self.summary = writers.with_checksums(self.summary, [clients, rows])
            writers.write_json(self.directory / "result.json", self.summary)

    def close(self) -> None:
        """Flushes the files and releases the directory."""
        try:
            self._files.close()
        finally:
            self._lock.close()


def _train(experiment: Experiment, runs: list[_Run], resume: bool, progress: Progress) -> None:
    """Trains and evaluates until all rounds are done, for one run or vectorized runs."""
    config = experiment.config
    provenance.commit()  # Read now, as the source code may change during the run.
    with contextlib.ExitStack() as opened:
        clock = Clock(experiment)
        opened.callback(clock.close)
        stop = opened.enter_context(StopRequests())
        for run in runs:
            opened.callback(run.close)
            run.claim(resume)
        # Opened with the checkpoints, which contain the table of rows.
        experiment.store.open(runs[0].directory, overwrite=runs[0].saved is None)
        state = clock.init([run.experiment.config.seed for run in runs])
        state, notes = _resumed(experiment, runs, state)
        done = runs[0].saved or 0
        histories = [run.begin(own) for run, own in zip(runs, notes, strict=True)]

        while True:
            missing = any(not run.rows or run.rows[-1]["round"] < done for run in runs)
            last = done == config.rounds
            first = any(not run.rows for run in runs)
            if first or (missing and _is_due(done, config.eval_every, config)) or last:
                evaluations = _each(experiment, clock.evaluate(state))
                for run, evaluation, history in zip(runs, evaluations, histories, strict=True):
                    if not run.diverged:
                        run.record(done, evaluation, history)
                _require_any(runs)
            _save_best(experiment, runs, state, histories, done)
            if done and _is_due(done, config.checkpoint_every, config):
                _save(experiment, runs, state, histories, done)
            progress(done, _mean_scores(runs))
            if last:
                break
            _stop_if_asked(stop, experiment, runs, state, histories, done)
            now = min(_next_stop(done, config) - done, config.engine.rounds_per_call)
            state, history = clock.run_rounds(state, now)
            done += now
            histories = _each(experiment, history)
            _note_divergence(runs, histories, done)
            _stop_if_asked(stop, experiment, runs, state, histories, done)
        for run in runs:
            if not run.diverged:
                run.finish(clock)
        if number := stop.signal_number():
            raise Stopped(number, f"after round {done}, the last one; its results are written")


def _save(experiment: Experiment, runs: list[_Run], state, histories, done: int) -> None:
    """Saves a checkpoint of each run that has none of this round and has not diverged."""
    for run, own, history in zip(runs, _states(experiment, state), histories, strict=True):
        if not run.diverged and run.saved != done:
            run.save(experiment.store.snapshot(own), history, done)


def _save_best(experiment: Experiment, runs: list[_Run], state, histories, done: int) -> None:
    """Saves a checkpoint of each run whose best round so far is this one."""
    if not any(run.is_best(done) for run in runs):
        return
    for run, own, history in zip(runs, _states(experiment, state), histories, strict=True):
        if run.is_best(done):
            run.save_best(experiment.store.snapshot(own), history)


def _stop_if_asked(
    stop: StopRequests, experiment: Experiment, runs: list[_Run], state, histories, done: int
) -> None:
    """Raises `Stopped` if a signal was received, after saving a checkpoint."""
    number = stop.signal_number()
    if not number:
        return
    if not done:
        raise Stopped(number, "before the first round; nothing has been trained yet")
    _save(experiment, runs, state, histories, done)
    for run in runs:
        run.close()  # waits until the checkpoint is on disk
    raise Stopped(number, f"after round {done}, with a checkpoint")


def _each(experiment: Experiment, stacked: Any) -> list[Any]:
    """Unstacks arrays of vectorized runs; those of a single run have no such axis."""
    if experiment.num_runs is None:
        return [stacked]
    return [
        jax.tree.map(lambda leaf, i=index: leaf[i], stacked) for index in range(experiment.num_runs)
    ]


def _states(experiment: Experiment, state: FederatedState) -> list[FederatedState]:
    if experiment.num_runs is None:
        return [state]
    return [programs.unstack(state, index) for index in range(experiment.num_runs)]


def _resumed(
    experiment: Experiment, runs: list[_Run], state: FederatedState
) -> tuple[FederatedState, list[dict[str, Any]]]:
    """Returns the state to resume from, and the notes of the checkpoints."""
    if all(run.saved is None for run in runs):
        return state, [{} for _ in runs]
    if any(run.saved is None for run in runs):
        raise _out_of_step(runs)
    config, restored = experiment.config, []
    for run, own in zip(runs, _states(experiment, state), strict=True):
        restored.append(restore(run.experiment, run.directory, run.checkpoints, own))
        run.saved = int(restored[-1].state.round)
    if len({run.saved for run in runs}) > 1:
        raise _out_of_step(runs)
    if runs[0].saved > config.rounds:
        raise UserError(
            f"{runs[0].directory} contains a run of {runs[0].saved} rounds, but config.rounds is "
            f"{config.rounds}; raise it, or choose another --workdir."
        )
    states, notes = [one.state for one in restored], [one.notes for one in restored]
    return states[0] if experiment.num_runs is None else programs.stack(states), notes


def restore(
    experiment: Experiment,
    directory: pathlib.Path,
    checkpoints: Checkpoints,
    state: FederatedState,
) -> Restored:
    """Reads the latest intact checkpoint of a run, or that of its best round.

    Args:
      experiment: The experiment of the run, whose store is open.
      directory: The work directory.
      checkpoints: The checkpoints of the run, the latest ones or the best.
      state: A state of the run, for structure, shapes and dtypes.

    Returns:
      The state as the programs take it, and its notes.

    Raises:
      UserError: No checkpoint is intact, or it has another data set, other frozen or initial
        parameters, or other settings.
    """
    store, devices = experiment.store, experiment.devices
    num_clients = experiment.dataset.num_clients

    def accept(kept: FederatedState) -> str | None:
        bad = store.damaged(kept)
        if not bad.size:
            return None
        return (
            f"the states of {bad.size} clients, such as client {bad[0]}, are missing or damaged in "
            f"{store.damaged_file(directory)}; resume with the same number of processes"
        )

    found = checkpoints.restore(
        store.like_snapshot(state),
        num_clients,
        devices,
        all_of_them=store.keeps_snapshots,
        accept=accept,
    )
    settings = found[0].notes.get("settings")
    if settings is not None:
        workdir.require_same_settings(directory, settings, experiment.config)
    if found[0].notes.get("frozen") != experiment.frozen_digest:
        from_file = experiment.config.init_from
        which = "initial" if from_file else "frozen"
        keys = "config.init_from" if from_file else "config.adapter.base and config.adapter.start"
        raise UserError(
            f"{directory} contains a run with other {which} parameters; set {keys} as "
            "before, with the same files, or choose another --workdir."
        )
    oldest_first = [one.state for one in reversed(found)]
    return found[0]._replace(state=store.adopt(oldest_first))


def _out_of_step(runs: list[_Run]) -> UserError:
    return UserError(
        f"{runs[0].directory.parent} contains runs that stopped after different numbers of "
        "rounds; finish them separately, without vectorization."
    )


def _mean_scores(runs: list[_Run]) -> dict[str, float]:
    scores = [
        results.scores(run.rows[-1], run.experiment.task.score) for run in runs if not run.diverged
    ]
    # A metric may be undefined for all clients of one run.
    return {
        name: float(np.mean([score[name] for score in scores if name in score]))
        for name in dict.fromkeys(name for score in scores for name in score)
    }


def _is_due(done: int, every: int, config: ml_collections.ConfigDict) -> bool:
    """Whether a periodic action is due after this round: every `every` rounds, and at the end."""
    return done == config.rounds or (every > 0 and done % every == 0)


def _next_stop(done: int, config: ml_collections.ConfigDict) -> int:
    """Returns the next round after which the host evaluates or saves a checkpoint."""
    return next(
        stop
        for stop in range(done + 1, config.rounds + 1)
        if _is_due(stop, config.eval_every, config)
        or _is_due(stop, config.checkpoint_every, config)
    )


def _note_divergence(runs: list[_Run], histories: list[dict[str, np.ndarray]], done: int) -> None:
    """Ends runs whose states are no longer finite, before a checkpoint of them is written.

    Raises:
      DivergedError: No run is left.
    """
    for run, history in zip(runs, histories, strict=True):
        found = history.pop("not_finite")
        bad = np.flatnonzero(found != ALL_FINITE)
        if bad.size and not run.diverged:
            first = int(found[bad[0]])
            whose = "the server's state" if first < 0 else f"the state or loss of client {first}"
            run.diverge(done - len(found) + int(bad[0]) + 1, f"{whose} is not finite")
    _require_any(runs)


def _require_any(runs: list[_Run]) -> None:
    if all(run.diverged for run in runs):
        raise DivergedError(runs[0].diverged)
