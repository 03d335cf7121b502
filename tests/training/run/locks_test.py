"""One run at a time in a work directory, and none shut out by one that died."""

import subprocess
import sys

import pytest

from pfljax.errors import UserError
from pfljax.training.run import locks

_HOLD = """
import pathlib, sys
from pfljax.training.run import locks
with locks.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the directory."""
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_until_the_first_ends(other, tmp_path):
    wanted = rf"{tmp_path.name} is in use by process {other.pid} on .*; wait until it ends"
    with pytest.raises(UserError, match=wanted), locks.hold(tmp_path):
        pass
    other.kill()  # as a preemption does
    other.wait()
    with locks.hold(tmp_path), locks.hold(tmp_path):  # a run in a comparison's own directory
        pass


def test_systems_without_flock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with locks.hold(tmp_path):
        monkeypatch.setattr(locks, "_held", set())  # as another process sees it
        with pytest.raises(UserError, match="remove .*lock if it has"), locks.hold(tmp_path):
            pass
        monkeypatch.undo()
        monkeypatch.setattr(locks, "fcntl", None)
    assert not (tmp_path / locks.NAME).exists()


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / locks.NAME).mkdir()
    with pytest.raises(UserError, match="cannot be written"), locks.hold(tmp_path):
        pass
