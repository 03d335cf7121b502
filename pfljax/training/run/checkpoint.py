"""Checkpoints of the whole state, in a layout that knows no devices.

On disk a client's state is row `i` of `[num_clients, ...]`, whatever the number of devices and
processes, so that a run can go on elsewhere. Saving is asynchronous: the state is copied to the
host, and written while the next rounds run.

Beside the state a checkpoint holds notes: the run's settings, its rows of metrics, and a checksum
of each array (BLAKE2b, at about 1 GB/s on each core: 0.1 s for a state of 100 MB on one core). What
is read is compared with them, and a damaged checkpoint is set aside for the one before.
"""

from __future__ import annotations

import concurrent.futures
import errno
import json
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from pfljax.core import FederatedState, PyTree
from pfljax.engine.clients import on_device
from pfljax.errors import UserError
from pfljax.training.run import writers

# How many of the newest checkpoints stay.
KEPT = 2

# The two items of a checkpoint: arrays, and a JSON file.
_STATE, _NOTES = "state", "notes"

# What is appended to the name of a damaged checkpoint's folder.
_ASIDE = ".damaged"


class Restored(NamedTuple):
    """A checkpoint that was read and found to be as it was written.

    Attributes:
      state: on the devices, as the round program takes it.
      notes: what `Checkpoints.save` was given with it.
    """

    state: FederatedState
    notes: dict[str, Any]


class _Damaged(Exception):
    """A checkpoint cannot be read, or is not what was written."""


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints`.

    Args:
      directory: made where it does not exist.
      keep: how many of the newest stay.
      to_host: `ClientStore.to_host`.
      to_devices: `ClientStore.to_devices`.

    Raises:
      UserError: it is no directory, or cannot be written.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        keep: int = KEPT,
        *,
        to_host: Callable[..., FederatedState] = on_device.to_host,
        to_devices: Callable[..., FederatedState] = on_device.to_devices,
    ):
        self._directory = directory.resolve()
        self._to_host, self._to_devices = to_host, to_devices
        _silence_orbax()
        folders(self._directory)  # Orbax's threads would outlive its complaint about a file there.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, create=True
        )
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except OSError as error:
            raise UserError(f"{self._directory} cannot be used ({error.strerror}).") from error

    def latest_round(self) -> int | None:
        """Returns the round of the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(
        self, state: FederatedState, num_clients: int, notes: dict[str, Any] | None = None
    ) -> None:
        """Copies the state to the host and writes it in the background.

        Args:
          state: as the round program returns it.
          num_clients: seen and unseen.
          notes: what JSON can hold, to be kept with it.

        Raises:
          UserError: this one, or the one before, cannot be written.
        """
        host = self._to_host(state, num_clients)
        leaves = _as_dict(host)
        content = json.dumps({**(notes or {}), "digests": digests(leaves)})
        sealed = {"content": content, "digest": writers.digest(content.encode())}
        items = {_STATE: ocp.args.StandardSave(leaves), _NOTES: ocp.args.JsonSave(sealed)}
        try:
            saved = self._manager.save(int(host.round), args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax raises whatever its storage meets.
            raise self._unwritten(error) from error
        if not saved:
            raise RuntimeError(f"Orbax left out the checkpoint of round {int(host.round)}.")

    def _unwritten(self, error: Exception) -> UserError:
        return UserError(
            f"A checkpoint in {self._directory} cannot be written ({_reason(error)}); free "
            "some space or name another --workdir. Checkpoints before it are kept."
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
        """Reads the newest checkpoint that is as it was written.

        Damaged ones are set aside, with a line on standard error for each.

        Args:
          like: a state of this run, for structure, shapes and dtypes.
          num_clients: seen and unseen.
          devices: that the run uses.
          all_of_them: read those before it, too.
          accept: says what is wrong with what belongs to a state and lies elsewhere; None where
            nothing is.

        Returns:
          The newest good checkpoint, or all good ones, the newest first.

        Raises:
          UserError: there is none, or none that can be read, or it is of another method or model.
        """
        self._manager.wait_until_finished()  # One that was saved just now counts too.
        template = self._to_host(like, num_clients)
        wanted = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(template)]
        good: list[Restored] = []
        damaged: dict[int, str] = {}
        for number in sorted(self._manager.all_steps(), reverse=True):
            reason, notes = "", {}
            try:
                leaves, notes = self._read(number)
                if [(leaf.shape, leaf.dtype) for leaf in leaves] != wanted:
                    raise UserError(
                        f"The checkpoint of round {number} in {self._directory / str(number)} is "
                        "of another model, method or number of clients; name another --workdir."
                    )
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
                f"The checkpoint of round {newest} cannot be used ({damaged[newest]}), and no "
                f"other in {self._directory} can; start anew in another work directory."
            )
        if not good:
            raise UserError(f"There is no checkpoint in {self._directory}; start without --resume.")
        self._set_aside(damaged, int(good[0].state.round))
        return good

    def _read(self, number: int) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Returns the arrays and the notes of a checkpoint."""
        notes = read_notes(self._directory / str(number))
        if notes is None:
            raise _Damaged("its notes are missing or damaged")
        try:
            # Given shapes, Orbax would cut and pad arrays to fit them.
            items = {_STATE: ocp.args.StandardRestore()}
            restored = self._manager.restore(number, args=ocp.args.Composite(**items))[_STATE]
            arrays = {name: np.asarray(restored[name]) for name in sorted(restored)}
        except Exception as error:  # Orbax raises whatever its storage meets.
            raise _Damaged(_reason(error)) from error
        if digests(arrays) != notes.pop("digests"):
            raise _Damaged("its arrays differ from their checksums")
        return list(arrays.values()), notes

    def _set_aside(self, damaged: dict[int, str], good: int) -> None:
        """Renames the folders of damaged checkpoints, which else would count as the newest."""
        if not damaged:
            return
        for number, reason in damaged.items():
            folder = self._directory / str(number)
            aside = folder.with_name(folder.name + _ASIDE)
            if jax.process_index() == 0:
                try:
                    shutil.rmtree(aside, ignore_errors=True)
                    folder.rename(aside)
                except OSError as error:
                    raise UserError(f"{folder} cannot be renamed ({error.strerror}).") from error
                print(
                    f"warning: the checkpoint of round {number} is damaged ({reason}) and now in "
                    f"{aside}; that of round {good} is used",
                    file=sys.stderr,
                )
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
          UserError: something cannot be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax raises whatever its storage meets.
            raise self._unwritten(error) from error
        finally:
            try:
                self._manager.close()
            except Exception:  # What could not be written, once more.
                pass


def folders(directory: pathlib.Path) -> dict[int, pathlib.Path]:
    """Returns the folders of checkpoints by their rounds, the newest first.

    Args:
      directory: that holds them, such as `workdir/checkpoints`.

    Raises:
      UserError: it is no directory.
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
            "name another --workdir."
        ) from error
    return dict(sorted(found.items(), reverse=True))


def latest_round(directory: pathlib.Path) -> int | None:
    """Returns the round of the newest checkpoint in a run's work directory; None for none."""
    return next(iter(folders(directory / "checkpoints")), None)


def read_notes(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the notes of a checkpoint; None where they are missing or damaged."""
    try:
        sealed = ocp.JsonCheckpointHandler().restore(folder / _NOTES)
        content = sealed["content"]
        good = sealed["digest"] == writers.digest(content.encode())
        return json.loads(content) if good else None
    except Exception:  # Orbax raises whatever its storage meets, and JSON may be anything.
        return None


def newest_notes(directory: pathlib.Path) -> dict[str, Any] | None:
    """Returns the newest readable notes of a run's checkpoints; None where there are none."""
    return next(filter(None, map(read_notes, folders(directory / "checkpoints").values())), None)


def digests(leaves: dict[str, np.ndarray]) -> dict[str, str]:
    """Returns a checksum of each array, its shape and its dtype."""

    def digest(leaf):
        leaf = np.asarray(leaf)
        form = f"{leaf.dtype.name} {leaf.shape} ".encode()
        return writers.digest(form, np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))

    # Hashing leaves other threads at work.
    with concurrent.futures.ThreadPoolExecutor() as threads:
        return dict(zip(leaves, threads.map(digest, leaves.values()), strict=True))


def _any_process(here: bool) -> bool:
    """Whether something holds on at least one process of the run."""
    if jax.process_count() == 1:
        return here
    return bool(np.any(multihost_utils.process_allgather(np.int32(here))))


def _reason(error: Exception) -> str:
    """Returns what the storage complains of, without the stack of its layers."""
    said = str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
        if os.strerror(number) in said:
            return os.strerror(number)
    return (said.splitlines() or [type(error).__name__])[0][:200]


class _NotByOrbax(logging.Filter):
    """Leaves out what Orbax logs: it raises the same, which is reported once."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname


_NOT_BY_ORBAX = _NotByOrbax()


def _silence_orbax() -> None:
    """Keeps Orbax's threads from complaining on standard error, in pages, of what it also raises.

    Reads and writes that it gave up say so when they end, in whatever thread that is.
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


def _as_dict(state: FederatedState) -> dict[str, PyTree]:
    """Orbax keeps no empty containers, so the leaves go by number of their place."""
    return {f"{index:04d}": leaf for index, leaf in enumerate(jax.tree.leaves(state))}
