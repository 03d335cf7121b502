"""Ends runs of train.py by a signal at random moments, and resumes them.

    python tests/experiments/kills.py < REQUEST.json > OUTCOMES.json

Reads `{place, arguments, signal, tries, seed}`. Every try begins in a folder of its own below
`place`, is ended once or twice, and then resumed to its end; `place/straight` is never ended.
Writes a list, for each try `{folder, ended: [status, ...], status, stderr}`. As in commands.py,
each process is a fork of this one, taken before JAX starts.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
import warnings

import commands

_HANG_SECONDS = 120


def start(arguments: list[str], place: pathlib.Path) -> int:
    """Starts train.py in a fork, with what it says in `place`; returns the process id."""
    child = os.fork()
    if child == 0:
        commands.run("train.py", arguments, place)
    return child


def wait(child: int) -> int:
    """Returns the exit status; one that takes too long is killed and counts as -9."""
    end = time.monotonic() + _HANG_SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def attempt(arguments: list[str], number: int, moments: list[float]) -> dict:
    """Ends a run by a signal after so many seconds, each time; then resumes it to its end."""
    with tempfile.TemporaryDirectory() as folder:
        place, ended, said = pathlib.Path(folder), [], []
        for moment in [*moments, None]:
            child = start(arguments, place)
            if moment is not None:
                time.sleep(moment)
                try:
                    os.kill(child, number)
                except ProcessLookupError:
                    pass
            ended.append(wait(child))
            said.append((place / "stderr").read_text())
            (place / "stderr").unlink()
        return {"ended": ended[:-1], "status": ended[-1], "stderr": said}


def main() -> None:
    request = json.load(sys.stdin)
    place, chance = pathlib.Path(request["place"]), random.Random(request["seed"])
    arguments = [*request["arguments"], "--quiet", "--resume"]

    def once(name, moments):
        found = attempt(
            [*arguments, f"--workdir={place / name}"], getattr(signal, request["signal"]), moments
        )
        return {"folder": str(place / name), **found}

    once("compiling", [])  # the compilation cache is full from now on
    begin = time.monotonic()
    outcomes = [once("straight", [])]
    whole = time.monotonic() - begin
    for number in range(request["tries"]):
        moments = [chance.uniform(0.3, 1.0) * whole for _ in range(chance.choice([1, 2]))]
        outcomes.append(once(f"try_{number}", moments))
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    # JAX warns of forks because of its threads, and none runs yet.
    warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)
    main()
