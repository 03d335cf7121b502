"""Checkpoints of the whole state, in a device-independent layout.

On disk, a client's state is row `i` of `[num_clients, ...]`, whatever the number of devices and
processes, so that a run can be resumed on others. Arrays are stored under their paths in the state,
such as `server/params/body/Dense_0/kernel`, so that other programs can read them with Orbax. Saving
is asynchronous: the state is copied to the host, and written while the next rounds run.

Besides the state, a checkpoint contains notes: the settings of the run, its rows of metrics, and a
checksum of each array (BLAKE2b, at about 1 GB/s on each core: 0.1 s for a state of 100 MB on one
core). They are verified on reading; a damaged checkpoint is renamed, and the one before is used.
"""

from __future__ import annotations

import concurrent.futures
import errno
import functools
import json
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from pfljax.core import FederatedState, PyTree
from pfljax.engine.clients import on_device
from pfljax.errors import UserError
from pfljax.training.run import writers

# Number of checkpoints to keep.
KEPT = 2

# The directories in a work directory: of the latest checkpoints, and of that of the best round.
LATEST, BEST = "checkpoints", "best_checkpoint"

# The two items of a checkpoint: arrays, and a JSON file.
_STATE, _NOTES = "state", "notes"

# The suffix of the directory of a damaged checkpoint.
_ASIDE = ".damaged"


class Restored(NamedTuple):
    """A checkpoint that was read and verified.

    Attributes:
      state: The state on the devices, as the round program takes it.
      notes: The notes passed to `Checkpoints.save`.
    """

    state: FederatedState
    notes: dict[str, Any]


class _Damaged(Exception):
    """A checkpoint that cannot be read, or differs from its checksums."""


class Checkpoints:
    """The checkpoints of one run, in `LATEST` or `BEST` of its work directory.

    Args:
      directory: The directory of the checkpoints; created if missing.
      keep: Number of checkpoints to keep, the latest ones; None for all that are not removed.
      to_host: `ClientStore.to_host`.
      to_devices: `ClientStore.to_devices`.

    Raises:
      UserError: The directory is a file, or cannot be written.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        keep: int | None = KEPT,
        *,
        to_host: Callable[..., FederatedState] = on_device.to_host,
        to_devices: Callable[..., FederatedState] = on_device.to_devices,
    ):
        self._directory = directory.resolve()
        self._to_host, self._to_devices = to_host, to_devices
        _silence_orbax()
        folders(self._directory)  # Orbax's threads would outlive its error for a file there.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, create=True
        )
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except OSError as error:
            raise UserError(f"{self._directory} cannot be used ({error.strerror}).") from error

    def latest_round(self) -> int | None:
        """Returns the round of the latest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def rounds(self) -> list[int]:
        """Returns the rounds of all checkpoints, including one that is being written."""
        return list(self._manager.all_steps())

    def wait(self) -> None:
        """Waits until the checkpoint that is being written is on disk.

        Raises:
          UserError: It cannot be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax passes on any exception of its storage.
            raise self._unwritten(error) from error

    def remove(self, rounds: Iterable[int]) -> None:
        """Deletes the checkpoints of rounds, none of which is being written.

        Raises:
          UserError: A directory cannot be deleted.
        """
        for number in rounds:
            try:
                self._manager.delete(number)
            except OSError as error:
                folder = self._directory / str(number)
                raise UserError(f"{folder} cannot be deleted ({_reason(error)}).") from error

    def save(
        self, state: FederatedState, num_clients: int, notes: dict[str, Any] | None = None
    ) -> None:
        """Copies the state to the host and writes it in the background.

        Args:
          state: The state, as the round program returns it.
          num_clients: Number of clients, including held-out ones.
          notes: Notes to store with the state, serializable as JSON.

        Raises:
          UserError: This checkpoint, or the previous one, cannot be written.
        """
        host = self._to_host(state, num_clients)
        leaves = by_path(host)
        content = json.dumps({**(notes or {}), "digests": digests(leaves)})
        with_checksums = {"content": content, "digest": writers.digest(content.encode())}
        items = {
            _STATE: ocp.args.StandardSave(_nested(leaves)),
            _NOTES: ocp.args.JsonSave(with_checksums),
        }
        try:
            saved = self._manager.save(int(host.round), args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax passes on any exception of its storage.
            raise self._unwritten(error) from error
        if not saved:
            raise RuntimeError(f"Orbax skipped the checkpoint of round {int(host.round)}.")

    def _unwritten(self, error: Exception) -> UserError:
        return UserError(
            f"A checkpoint in {self._directory} cannot be written ({_reason(error)}); free "
            "some space or choose another --workdir. Earlier checkpoints are kept."
        )

    def restore(
        self,
        like: FederatedState,
        num_clients: int,
        devices: Sequence[jax.Device],
        *,
        all_of_them: bool = False,
        accept: Callable[[FederatedState], str | None] = lambda state: None,
    ) -> list[Restored]:
        """Reads the latest checkpoint that is intact.

        Damaged ones are renamed, with a line on standard error for each.

        Args:
          like: A state of this run, for structure, shapes and dtypes.
          num_clients: Number of clients, including held-out ones.
          devices: The devices of the run.
          all_of_them: Whether to read all intact checkpoints.
          accept: Returns what is wrong with data of a state that are stored elsewhere; None if
            nothing is.

        Returns:
          The latest intact checkpoint, or all intact ones, the latest first.

        Raises:
          UserError: There is no checkpoint, none is intact, or it is of another method or model.
        """
        self._manager.wait_until_finished()  # includes a checkpoint that is being written
        template = self._to_host(like, num_clients)
        wanted = _forms(by_path(template))
        good: list[Restored] = []
        damaged: dict[int, str] = {}
        for number in sorted(self._manager.all_steps(), reverse=True):
            reason, notes = "", {}
            try:
                arrays, notes = self._read(number)
                arrays = _with_paths(arrays, list(wanted))
                if _forms(arrays) != wanted:
                    raise UserError(
                        f"The checkpoint of round {number} in {self._directory / str(number)} is "
                        "of another model, method or number of clients; choose another --workdir."
                    )
                leaves = [arrays[path] for path in wanted]
                host = jax.tree.unflatten(jax.tree.structure(template), leaves)
                state = self._to_devices(host, like, devices)
                reason = accept(state) or ""
            except _Damaged as error:
                reason = str(error)
            if _any_process(bool(reason)):
                damaged[number] = reason or "another process cannot read its part"
                continue
            good.append(Restored(state, notes))
            if not all_of_them:
                break
        if damaged and not good:
            newest = max(damaged)
            raise UserError(
                f"The checkpoint of round {newest} cannot be used ({damaged[newest]}), nor any "
                f"other in {self._directory}; start again in another work directory."
            )
        if not good:
            raise UserError(f"There is no checkpoint in {self._directory}; start without --resume.")
        self._rename_damaged(damaged, int(good[0].state.round))
        return good

    def _read(self, number: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns the arrays by their paths and the notes of a checkpoint, verified."""
        notes = read_notes(self._directory / str(number))
        if notes is None:
            raise _Damaged("its notes are missing or damaged")
        try:
            # Given shapes, Orbax would truncate or pad arrays to fit them.
            items = {_STATE: ocp.args.StandardRestore()}
            restored = self._manager.restore(number, args=ocp.args.Composite(**items))[_STATE]
            arrays = {path: np.asarray(leaf) for path, leaf in by_path(restored).items()}
        except Exception as error:  # Orbax passes on any exception of its storage.
            raise _Damaged(_reason(error)) from error
        if digests(arrays) != notes.pop("digests"):
            raise _Damaged("its arrays differ from their checksums")
        return arrays, notes

    def _rename_damaged(self, damaged: dict[int, str], good: int) -> None:
        """Renames directories of damaged checkpoints, which would else count as the latest."""
        if not damaged:
            return
        for number, reason in damaged.items():
            folder = self._directory / str(number)
            renamed = folder.with_name(folder.name + _ASIDE)
            if jax.process_index() == 0:
                try:
                    shutil.rmtree(renamed, ignore_errors=True)
                    folder.rename(renamed)
                except OSError as error:
                    raise UserError(f"{folder} cannot be renamed ({error.strerror}).") from error
                print(
                    f"warning: the checkpoint of round {number} is damaged ({reason}) and was "
                    f"renamed to {renamed}; that of round {good} is used",
                    file=sys.stderr,
                )
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are renamed")
        self._manager.reload()

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
          UserError: A checkpoint cannot be written.
        """
        try:
            self.wait()
        finally:
            try:
                self._manager.close()
            except Exception:  # the same error once more
                pass


def folders(directory: pathlib.Path) -> dict[int, pathlib.Path]:
    """Returns the directories of checkpoints by round, the latest first.

    Args:
      directory: The directory of all checkpoints, such as `workdir/checkpoints`.

    Raises:
      UserError: It is not a directory.
    """
    try:
        found = {
            int(path.name): path
            for path in directory.iterdir()
            if path.name.isdecimal() and path.is_dir()
        }
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(
            f"{directory} must be a directory of checkpoints ({error.strerror}); remove it, or "
            "choose another --workdir."
        ) from error
    return dict(sorted(found.items(), reverse=True))


def latest_round(directory: pathlib.Path) -> int | None:
    """Returns the round of the latest checkpoint in a run's work directory; None for none."""
    return next(iter(folders(directory / LATEST)), None)


def read_notes(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the notes of a checkpoint; None if they are missing or damaged."""
    try:
        with_checksums = ocp.JsonCheckpointHandler().restore(folder / _NOTES)
        content = with_checksums["content"]
        good = with_checksums["digest"] == writers.digest(content.encode())
        return json.loads(content) if good else None
    except Exception:  # any exception of Orbax's storage, or of its parsing
        return None


def newest_notes(directory: pathlib.Path) -> dict[str, Any] | None:
    """Returns the latest readable notes of a run's checkpoints; None if there are none."""
    return next(filter(None, map(read_notes, folders(directory / LATEST).values())), None)


def digests(leaves: dict[str, np.ndarray]) -> dict[str, str]:
    """Returns a checksum of each array, its shape and its dtype."""

    def digest(leaf):
        leaf = np.asarray(leaf)
        form = f"{leaf.dtype.name} {leaf.shape} ".encode()
        return writers.digest(form, np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))

    # Hashing releases the interpreter lock, so threads run in parallel.
    with concurrent.futures.ThreadPoolExecutor() as threads:
        return dict(zip(leaves, threads.map(digest, leaves.values()), strict=True))


def _any_process(here: bool) -> bool:
    """Whether a condition holds on at least one process of the run."""
    if jax.process_count() == 1:
        return here
    return bool(np.any(multihost_utils.process_allgather(np.int32(here))))


def _reason(error: Exception) -> str:
    """Returns the storage's error message, without the stack of its layers."""
    said = str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
        if os.strerror(number) in said:
            return os.strerror(number)
    return (said.splitlines() or [type(error).__name__])[0][:200]


class _NotByOrbax(logging.Filter):
    """Removes messages that Orbax logs and also raises, which are then reported once."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname


_NOT_BY_ORBAX = _NotByOrbax()


def _silence_orbax() -> None:
    """Prevents Orbax's threads from printing errors on standard error that it also raises.

    Abandoned reads and writes would print when they end, from any thread.
    """
    logger = logging.getLogger("absl")
    if _NOT_BY_ORBAX not in logger.filters:
        logger.addFilter(_NOT_BY_ORBAX)
    for name in ("unraisablehook", "excepthook"):
        report = getattr(sys, name)
        if not hasattr(report, "of_checkpoints"):
            setattr(sys, name, _without_closed_loops(report))


def _without_closed_loops(report: Callable[..., None]) -> Callable[..., None]:
    def hook(*args):
        error = args[0].exc_value if len(args) == 1 else args[1]
        if str(error) != "Event loop is closed":
            report(*args)

    hook.of_checkpoints = True
    return hook


def by_path(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, in the order of the leaves.

    Raises:
      UserError: Two leaves have one path, as a key contains a slash.

    Example:
      >>> by_path({'server': {'params': [1, 2]}})
      {'server/params/0': 1, 'server/params/1': 2}
    """
    found: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if path in found:
            raise UserError(f"The state has two arrays with the path {path!r}; rename one of them.")
        found[path] = leaf
    return found


def _nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """Returns the nested dict with these leaves; Orbax does not store empty containers."""
    found: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, found)[name] = leaf
    return found


def _forms(arrays: dict[str, Any]) -> dict[str, tuple]:
    """Returns the shape and the dtype of each array."""
    return {path: (array.shape, array.dtype) for path, array in arrays.items()}


def _with_paths(arrays: dict[str, np.ndarray], paths: list[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of an earlier version, named by their index among the leaves, by path.

    Args:
      arrays: The arrays of a checkpoint of this or an earlier version.
      paths: The paths of the arrays of the run, in the order of the leaves.
    """
    if "round" in arrays or len(arrays) != len(paths):
        return arrays
    return {path: arrays[index] for path, index in zip(paths, sorted(arrays), strict=True)}
