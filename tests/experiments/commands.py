"""Runs many command lines of the binaries in one process: importing JAX is paid for once.

    python tests/experiments/commands.py < COMMANDS.json > OUTCOMES.json

Reads `{name: [binary, argument, ...]}` and writes `{name: {status, stdout, stderr, compiled}}`.
Each command runs in a separate fork, taken before JAX starts its backend and its threads, so
that no flag, no device and no file descriptor passes from one to the next.
"""

from __future__ import annotations

import json
import os
import pathlib
import runpy
import sys
import tempfile
import traceback
import warnings

# What the forks would import, each for itself.
import sklearn.datasets
import sklearn.model_selection  # noqa: F401

from pfljax.cli import compare, evaluate, partition, sweep, train  # noqa: F401
from pfljax.report import plots, tables  # noqa: F401
from pfljax.training.run import runtime
from pfljax.training.study.config import default_config

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"


def run(binary: str, arguments: list[str], place: pathlib.Path) -> None:
    """Runs a binary as `python experiments/BINARY` does, leaving what it says in `place`."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [str(EXPERIMENTS / binary), *arguments]
    sys.path.insert(0, str(EXPERIMENTS))
    counter = runtime.CompilationCounter()
    status = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    (place / "compiled").write_text(str(counter.programs))
    os._exit(status)


def outcome(binary: str, *arguments: str) -> dict[str, str | int]:
    """Runs a command in a fork; returns its exit status and all it said."""
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        child = os.fork()
        if child == 0:
            run(binary, list(arguments), place)
        _, status = os.waitpid(child, 0)
        return {
            "status": os.waitstatus_to_exitcode(status),
            "stdout": (place / "stdout").read_text(),
            "stderr": (place / "stderr").read_text(),
            "compiled": int((place / "compiled").read_text()),
        }


if __name__ == "__main__":
    # JAX warns of forks because of its threads, and none runs yet.
    warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)
    default_config()  # imports the files of all methods
    commands = json.load(sys.stdin)
    json.dump({name: outcome(*command) for name, command in commands.items()}, sys.stdout)
