"""Two processes on one machine give what one process gives, and either can resume the other."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from pfljax.training import writers

ROOT = pathlib.Path(__file__).parents[2]
STUDY = [
    "--config=configs/quickstart.py",
    "--config.algorithm=ditto",
    "--config.data.num_clients=6",
    "--config.data.partition=iid",
    "--config.eval_every=1",
    "--config.checkpoint_every=1",
    "--config.engine.devices=2",
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(workdir, rounds, *options):
    """Starts train.py and returns the process."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    command = [sys.executable, "experiments/train.py", *STUDY, f"--config.rounds={rounds}"]
    command += [f"--workdir={workdir}", *options]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    """Waits for processes; returns what each said on standard output and standard error."""
    try:
        said = [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, error) in zip(processes, said, strict=True):
        assert process.returncode == 0, error
    return said


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The work directory of one process with two devices, after three rounds."""
    place = tmp_path_factory.mktemp("one") / "run"
    finish(train(place, 3))
    return place


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The same of two processes with a device each, after two rounds, and what they said."""
    place = tmp_path_factory.mktemp("two") / "run"
    address = f"--coordinator=127.0.0.1:{free_port()}"
    said = finish(
        *(train(place, 2, address, "--num_processes=2", f"--process_id={i}") for i in range(2))
    )
    return place, said


def assert_same_rows(place, other, rounds):
    rows, expected = (writers.read_rows(p / "metrics.jsonl") for p in (place, other))
    assert [row["round"] for row in rows] == list(range(rounds + 1))
    for row, wanted in zip(rows, expected[: rounds + 1], strict=True):
        assert row == pytest.approx(wanted, abs=1e-5)


def test_two_processes_equal_one(one, two):
    place, _ = two
    assert_same_rows(place, one, rounds=2)
    result = writers.read_json(place / "result.json")
    assert (result["num_devices"], result["num_clients"]) == (2, 6)


def test_the_second_process_is_silent(two):
    _, ((first, _), (second, _)) = two
    assert "test accuracy" in first
    own = [line for line in second.splitlines() if not line.startswith("[Gloo]")]
    assert own == []


def test_one_process_resumes_what_two_began(one, two):
    place, _ = two
    finish(train(place, 3, "--resume"))
    assert_same_rows(place, one, rounds=3)
    clients, expected = np.load(place / "clients.npz"), np.load(one / "clients.npz")
    assert set(clients) == set(expected)
    for name in expected:
        if name.endswith("accuracy"):
            np.testing.assert_array_equal(clients[name], expected[name])
        else:
            np.testing.assert_allclose(clients[name], expected[name], rtol=1e-4)
