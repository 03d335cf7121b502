"""Provenance of a result: the code, the versions, the command and the devices that computed it."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax

_PACKAGES = ("jax", "numpy", "optax", "flax")
_ROOT = pathlib.Path(__file__).parents[3]  # the directory that contains the package


def collect(devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Returns the provenance of a result that is computed now.

    Args:
      devices: The devices of the run.

    Returns:
      `commit` and `command`, see these functions; `versions` of pfljax, Python and the packages
      that compute; `devices` with `kind` and `count`; and `date`, in UTC.
    """
    now = datetime.datetime.now(datetime.UTC)
    return {
        "commit": commit(),
        "versions": {
            "pfljax": sys.modules["pfljax"].__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "command": command(),
        "devices": {"kind": devices[0].device_kind, "count": len(devices)},
        "date": now.isoformat(timespec="seconds"),
    }


@functools.cache
def commit(root: pathlib.Path = _ROOT) -> str | None:
    """Returns the commit of the source code, which is read once in a process.

    Args:
      root: The directory that contains the package.

    Returns:
      40 hexadecimal digits, followed by `-dirty` if tracked files were changed; None if the
      directory is not the root of a git checkout, or git is not available.
    """
    if not (root / ".git").exists():
        return None  # Git would look for a checkout in the directories above.
    try:
        number = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{number}-dirty" if changes else number


def _git(root: pathlib.Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=root,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # reads only
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return done.stdout.strip()


def command(words: Sequence[str] | None = None) -> str | None:
    """Returns the command line of this process, without the directories of its programs.

    Args:
      words: The words of the command line; None for those of this process.

    Returns:
      The interpreter, the program and the arguments, as a shell takes them; None in a notebook or
      an interactive session, which has no command.

    Example:
      >>> command(["/usr/bin/python3", "/usr/bin/pfljax", "train", "--workdir=my run"])
      "python3 pfljax train '--workdir=my run'"
    """
    if words is None:
        if hasattr(sys, "ps1") or "ipykernel" in sys.modules:
            return None
        words = sys.orig_argv
    program = next((n for n, word in enumerate(words[1:], 1) if not word.startswith("-")), 0)
    return shlex.join(
        pathlib.Path(word).name if number in (0, program) and os.path.isabs(word) else word
        for number, word in enumerate(words)
    )
