"""Locks of work directories: one run at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
from collections.abc import Iterator

import jax

from pfljax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"

# The directories locked by this process: the runs of a comparison belong to the same process.
_held: set[pathlib.Path] = set()


@contextlib.contextmanager
def hold(directory: pathlib.Path) -> Iterator[None]:
    """Locks a work directory against other processes; creates it if missing.

    Of the processes of one run, process 0 holds the lock. The system releases the lock when the
    process ends in any way; the file `.lock` remains and names the last process.

    Raises:
      UserError: Another process holds the lock, or the directory cannot be written.
    """
    directory = directory.resolve()
    if jax.process_index() != 0 or directory in _held:
        yield
        return
    file = _acquire(directory / NAME)
    _held.add(directory)
    try:
        yield
    finally:
        _held.remove(directory)
        os.close(file)
        if fcntl is None:
            (directory / NAME).unlink(missing_ok=True)


def _acquire(path: pathlib.Path) -> int:
    """Returns the opened and locked file."""
    # Without `flock`, the file itself is the lock, and remains after a process is killed.
    only_mine = os.O_EXCL if fcntl is None else 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | only_mine, 0o644)
    except OSError as error:
        if only_mine and isinstance(error, FileExistsError) and path.is_file():
            raise _in_use(path) from error
        raise UserError(
            f"{path.parent} cannot be written ({error.strerror}); choose another --workdir."
        ) from error
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(file)
                raise _in_use(path) from error
            # Some network file systems do not support locks; allow a run there.
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file


def _in_use(path: pathlib.Path) -> UserError:
    owner = path.read_bytes().decode(errors="replace") or "another process"
    if fcntl is None:
        advice = f"wait until it ends, remove {path} if it has ended, or choose another --workdir."
    else:
        advice = "wait until it ends, or choose another --workdir."
    return UserError(f"{path.parent} is in use by {owner}; {advice}")
