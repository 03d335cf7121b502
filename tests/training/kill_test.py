"""Runs killed at random times and resumed: all results equal those of an undisturbed run."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from runs import assert_same_run

from pfljax.training.run import checkpoint, writers

ROOT = pathlib.Path(__file__).parents[2]
STUDY = [
    "--config=configs/quickstart.py",
    "--config.algorithm=ditto",
    "--config.data.num_clients=5",
    "--config.data.alpha=1.0",
    "--config.cohort.size=3",
    "--config.rounds=30",
    "--config.eval_every=3",
    "--config.checkpoint_every=2",
    "--config.engine.devices=1",
    "--config.engine.rounds_per_call=2",
    "--config.engine.clients_per_chunk=2",
    "--config.model.widths=(8,)",
]


def run(place, signal, residence, tries, seed, every=2):
    """What kills.py answers, counted: what the last resumption of each try came to."""
    arguments = [*STUDY, f"--config.engine.residence={residence}"]
    arguments.append(f"--config.checkpoint_every={every}")
    arguments.append(f"--config.keep_best={residence == 'device'}")
    request = {"place": str(place), "signal": signal, "tries": tries, "seed": seed}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "experiments" / "kills.py")],
        input=json.dumps({**request, "arguments": arguments}),
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    straight, *outcomes = json.loads(done.stdout)
    assert straight["status"] == 0, straight["stderr"]
    found = collections.Counter(kind(outcome, straight) for outcome in outcomes)
    return found, outcomes


def kind(outcome, straight):
    if any("Traceback" in said for said in outcome["stderr"]):
        return "traceback"
    if outcome["status"] == -9:
        return "hang"
    if outcome["status"] != 0:
        return f"status {outcome['status']}"
    place, other = (pathlib.Path(one["folder"]) for one in (outcome, straight))
    results = [writers.read_json(path / "result.json") for path in (place, other)]
    try:
        assert_same_run(place, results[0], (other, results[1], None))
        assert best(place) == best(other)
    except AssertionError:
        return "other numbers"
    return "same numbers"


def best(place):
    """The round of the last checkpoint of a best round, and the checksums of its arrays."""
    found = checkpoint.folders(place / checkpoint.BEST)
    return [(n, checkpoint.read_notes(folder)["digests"]) for n, folder in found.items()][:1]


@pytest.mark.slow
@pytest.mark.parametrize("every", [0, 2])
@pytest.mark.parametrize("residence", ["device", "host"])
@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_runs_that_end_at_any_moment(tmp_path, signal, residence, every, capsys):
    tries = 8
    found, outcomes = run(tmp_path, signal, residence, tries, seed=every, every=every)
    ended = collections.Counter(status for outcome in outcomes for status in outcome["ended"])
    with capsys.disabled():
        print(f"\n{signal}, {residence}, every {every}: {dict(found)}; ended {dict(ended)}")
    assert found == {"same numbers": tries}, found
    if signal == "SIGTERM":  # -15: before the training began
        assert set(ended) <= {143, -15, 0} and ended[143]
    for outcome in outcomes:
        for status, said in zip(outcome["ended"], outcome["stderr"], strict=False):
            assert status != 143 or "the same command resumes from there" in said
