"""Programs compiled in threads: equality, errors, interruptions; and runs that repeat exactly."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from runs import config

from pfljax.engine import mapping
from pfljax.errors import UserError
from pfljax.training.run import compiling, loop
from pfljax.training.study import autotune, experiment

ROOT = pathlib.Path(__file__).parents[3]
DEFAULT = {"engine.clients_per_chunk": "default"}


@pytest.fixture(scope="module")
def compiled():
    """An experiment with its programs compiled in threads."""
    built = experiment.build(config(**DEFAULT))
    compiling.compile_all([built])
    return built


@pytest.fixture(scope="module")
def first(compiled, tmp_path_factory):
    """A run of that experiment: its directory and its result."""
    directory = tmp_path_factory.mktemp("first")
    return directory, loop.run(compiled, directory)


def test_programs_are_those_of_a_first_call(compiled, first, tmp_path, monkeypatch):
    """Traced for shapes and compiled in a thread, or traced for arrays and compiled in place."""
    texts = []

    def compile(program, lowered):
        texts.append(lowered.as_text())
        return lowered.compile(compiler_options=program._options)

    monkeypatch.setattr(mapping.Program, "_compile", compile)
    compiling.compile_all([experiment.build(config(**DEFAULT))])
    in_threads = sorted(texts)
    texts.clear()
    loop.run(experiment.build(config(**DEFAULT)), tmp_path)
    assert len(texts) == 3 and sorted(texts) == in_threads


@pytest.mark.parametrize("most, filled", [("1000", False), ("100", True), ("unlimited", False)])
def test_regions_of_memory_are_counted_where_the_system_does(most, filled, tmp_path, monkeypatch):
    (tmp_path / "maps").write_text("a region\n" * 100)
    (tmp_path / "most").write_text(most)
    monkeypatch.setattr(compiling, "_REGIONS", tmp_path / "maps")
    monkeypatch.setattr(compiling, "_MOST_REGIONS", tmp_path / "most")
    assert compiling.programs_fill_memory() == filled
    (tmp_path / "maps").unlink()
    assert not compiling.programs_fill_memory()


def test_compilations_count_for_the_first_run(compiled, first, tmp_path):
    result = first[1]
    assert result["compilations"] == 1 and result["seconds_compile"] > 0
    assert result["compilations_after_first_round"] == 0
    again = loop.run(compiled, tmp_path)
    assert again["compilations"] == 0 and again["seconds_compile"] == 0


@pytest.mark.parametrize("residence", ["device", "host"])
def test_fresh_runs_agree_to_the_last_bit(first, tmp_path, residence, monkeypatch):
    """With the default settings, nothing that is measured decides anything."""
    monkeypatch.setattr(autotune, "measure", None)  # would fail if it were called
    settings = {**DEFAULT, "engine.residence": residence}
    directories = [tmp_path / "one", tmp_path / "two"]
    for directory in directories:
        result = loop.run(experiment.build(config(**settings, rounds=20)), directory)
        assert result["clients_per_chunk"] == 1
    rows, others = (at.joinpath("metrics.jsonl").read_bytes() for at in directories)
    assert rows == others and rows.count(b"\n") > 2
    clients, same = (np.load(at / "clients.npz") for at in directories)
    for name in clients:
        np.testing.assert_array_equal(clients[name], same[name])


def test_an_error_in_a_thread_is_raised_and_the_rest_is_dropped(monkeypatch):
    begun = []

    def compile(program, lowered):
        begun.append(threading.current_thread())
        raise UserError("The program does not fit.")

    monkeypatch.setattr(mapping.Program, "_compile", compile)
    monkeypatch.setattr(compiling.runtime, "available_cores", lambda: 1)
    built = experiment.build(config(**DEFAULT))
    with pytest.raises(UserError, match="The program does not fit."):
        compiling.compile_all([built])
    assert begun and threading.main_thread() not in begun
    for thread in begun:
        thread.join(10)
    assert not compiling.is_active()


# Compiling takes two minutes and cannot be interrupted.
SLOW = """
import sys, time
from pfljax.cli import app, compare
from pfljax.engine import mapping
from pfljax.training.run import compiling

def compile(program, lowered):
    print("compiling", flush=True)
    time.sleep(120)

def wait(threads):
    print("waiting", flush=True)  # all programs are traced
    for future in threads:
        future.result()

mapping.Program._compile = compile
compiling._wait = wait
sys.argv = ["compare", *sys.argv[1:]]
app.run(compare.main, compare.define_flags)
"""


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, -signal.SIGTERM, "")],
)
def test_a_signal_ends_compilations(tmp_path, number, status, message):
    command = [
        *(sys.executable, "-c", SLOW, "--config=configs/quickstart.py", "--quiet"),
        *("--config.algorithms=('local','fedavg')", "--config.seeds=(0,)"),
        *("--config.rounds=2", f"--workdir={tmp_path}"),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        while process.stdout.readline() != "waiting\n":
            pass
        begin = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert time.monotonic() - begin < 20
    assert process.returncode == status
    assert said.strip() == message
