"""Two processes on one machine give what one process gives, and either can resume the other."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from pfljax.training.run import checkpoint, writers

ROOT = pathlib.Path(__file__).parents[2]
STUDY = [
    "--config=configs/quickstart.py",
    "--config.algorithm=ditto",
    "--config.data.num_clients=6",
    "--config.data.partition=iid",
    "--config.cohort.size=4",
    "--config.eval_every=1",
    "--config.checkpoint_every=1",
    "--config.engine.devices=2",
    "--config.metrics=('nll','brier')",
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(workdir, rounds, *options, cache=None):
    """Starts train.py and returns the process."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache or jax.config.jax_compilation_cache_dir),
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


def train_in_two(place, rounds, *options, caches=(None, None)):
    """Trains in two processes with a device each; returns what they said."""
    both = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", *options]
    return finish(
        *(
            train(place, rounds, *both, f"--process_id={process}", cache=cache)
            for process, cache in enumerate(caches)
        )
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The same of two processes, after two rounds, and what they said."""
    place = tmp_path_factory.mktemp("two") / "run"
    return place, train_in_two(place, 2)


def assert_same_rows(place, other, rounds):
    rows, expected = (writers.read_rows(p / "metrics.jsonl") for p in (place, other))
    assert [row["round"] for row in rows] == list(range(rounds + 1))
    for row, wanted in zip(rows, expected[: rounds + 1], strict=True):
        # How many slots there are depends on who trains together.
        assert row.pop("train/slots", 0) >= 0 and wanted.pop("train/slots", 0) >= 0
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
    assert_same_run(place, one)


@pytest.mark.slow
def test_two_processes_that_measured_otherwise_follow_the_first(tmp_path):
    """A run of so many rounds measures chunks; each process has what it measured to itself."""
    seldom = ["--config.eval_every=20", "--config.checkpoint_every=20"]
    seldom.append("--config.engine.clients_per_chunk=auto")
    caches = [tmp_path / "first", tmp_path / "second"]
    train_in_two(tmp_path / "measuring", 20, *seldom, caches=caches)
    for cache, seconds in zip(caches, ({"1": 1e-6, "2": 1}, {"1": 1, "2": 1e-6}), strict=True):
        (measured,) = writers.read_json(cache / "clients_per_chunk.json")
        writers.write_json(cache / "clients_per_chunk.json", {measured: seconds})
    train_in_two(tmp_path / "two", 20, *seldom, caches=caches)
    finish(train(tmp_path / "one", 20, *seldom, "--config.engine.clients_per_chunk=1"))
    last, expected = (
        writers.read_rows(tmp_path / run / "metrics.jsonl")[-1] for run in ("two", "one")
    )
    assert last["round"] == expected["round"] == 20
    assert last["train/slots"] == expected["train/slots"]
    assert last["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-4)


HOST = "--config.engine.residence=host"


def test_two_processes_keep_a_population_on_their_hosts(one, tmp_path):
    """Each process stores half of the clients in a separate file, and resumes from it."""
    place = tmp_path / "run"
    train_in_two(place, 2, HOST)
    assert {path.name for path in place.glob("*.rows")} == {
        "clients-0-of-2.rows",
        "clients-1-of-2.rows",
    }
    alone = train(place, 3, HOST, "--resume")
    _, error = alone.communicate(timeout=180)
    assert alone.returncode == 2 and "resume with the same number of processes" in error
    train_in_two(place, 3, HOST, "--resume")
    assert_same_run(place, one)


def assert_same_run(place, one):
    assert_same_rows(place, one, rounds=3)
    clients, expected = np.load(place / "clients.npz"), np.load(one / "clients.npz")
    assert set(clients) == set(expected)
    for name in expected:
        if name.endswith("accuracy"):
            np.testing.assert_array_equal(clients[name], expected[name])
        else:
            np.testing.assert_allclose(clients[name], expected[name], rtol=1e-4)


LONG = ["--config.eval_every=500", "--config.checkpoint_every=20", "--quiet"]


def wait_for_a_checkpoint(place, *processes):
    for _ in range(1200):
        if checkpoint.latest_round(place):
            return
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    raise AssertionError("no checkpoint")


def test_a_signal_to_one_process_stops_both_after_the_same_round(tmp_path):
    both = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", *LONG]
    processes = [train(tmp_path / "run", 100_000, *both, f"--process_id={i}") for i in (0, 1)]
    try:
        wait_for_a_checkpoint(tmp_path / "run", *processes)
        processes[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [143, 143], said
    rounds = {re.search("stopped by SIGTERM after round ([0-9]+)", one)[1] for one in said}
    assert rounds == {str(checkpoint.latest_round(tmp_path / "run"))}


def test_a_process_whose_peer_dies_reports_it(tmp_path):
    both = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", *LONG]
    processes = [train(tmp_path / "run", 100_000, *both, f"--process_id={i}") for i in (0, 1)]
    try:
        wait_for_a_checkpoint(tmp_path / "run", *processes)
        processes[1].kill()
        _, said = processes[0].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode == 2, said
    (line,) = (line for line in said.splitlines() if not line.startswith("[Gloo]"))
    assert line.startswith("error: Another process of this run ended")


def test_the_launch_script_ends_with_its_processes(tmp_path):
    command = ["bash", "experiments/launch/two_local_processes.sh", "experiments/train.py"]
    command += [*STUDY, *LONG, "--config.rounds=100000", f"--workdir={tmp_path / 'run'}"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        "PORT": str(free_port()),
    }
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as script:
        wait_for_a_checkpoint(tmp_path / "run", script)
        script.terminate()
        # The pipe closes when the last of the processes has ended.
        _, said = script.communicate(timeout=60)
    assert script.returncode == 143
    assert said.count("stopped by SIGTERM after round") == 2
