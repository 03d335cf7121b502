"""The command users.py, on runs written by hand."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from pfljax.training.run import writers

ROOT = pathlib.Path(__file__).parents[2]
SCORES = {"fedavg": np.linspace(0.2, 0.8, 40), "local": np.linspace(0.9, 0.6, 40)}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Returns the work directory, and how each command ended."""
    root = tmp_path_factory.mktemp("comparison")
    for method, scores in SCORES.items():
        directory = root / method / "seed_0"
        directory.mkdir(parents=True)
        writers.write_json(directory / "result.json", {"algorithm": method, "seed": 0})
        arrays = {"client": np.arange(40), "train_size": np.arange(40) + 1}
        arrays |= {"test_size": np.full(40, 5), "unseen": np.zeros(40, bool)}
        np.savez(directory / "clients.npz", personal_test_accuracy=scores, **arrays)
    rows = "".join(f"{client},{'ab'[client // 20]}\n" for client in range(40))
    (root / "groups.csv").write_text("client,group\n" + rows)
    (root / "ages.csv").write_text("client,age\n1,30\n")
    given = ["users.py", f"--workdir={root}"]
    commands = {
        "table": [*given, f"--groups={root}/groups.csv"],
        "columns": [*given, f"--groups={root}/ages.csv"],
        "reference": [*given, "--against=ditto"],
        "nothing": ["users.py"],
    }
    done = subprocess.run(
        [sys.executable, "tests/experiments/commands.py"],
        cwd=ROOT,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
    )
    return root, json.loads(done.stdout)


def test_the_table_is_printed_and_written(ended):
    root, outcomes = ended
    outcome = outcomes["table"]
    assert (outcome["status"], outcome["stderr"], outcome["compiled"]) == (0, "", 0)
    assert (root / "users.md").read_text() == outcome["stdout"]
    head, _, fedavg, local = outcome["stdout"].splitlines()[:4]
    assert head.endswith("| gain (points) | gaining (%) | rank correlation | gap (points) |")
    fedavg_gap, local_gap = (100 * abs(of[20:].mean() - of[:20].mean()) for of in SCORES.values())
    assert fedavg.startswith("| fedavg | 50.00 |") and fedavg.endswith(f"| {fedavg_gap:.2f} |")
    gaining = 100 * np.mean(SCORES["local"] > SCORES["fedavg"])
    assert local.startswith("| local | 75.00 |")
    assert local.endswith(f"| {gaining:.0f} | -1.00 | {local_gap:.2f} |")


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("columns", "has the columns client, age; it needs exactly the columns client and group."),
        ("reference", "'ditto'; known are fedavg, local."),
        ("nothing", "Pass the work directory of a comparison with --workdir=DIR."),
    ],
)
def test_mistakes_give_one_sentence(ended, name, sentence):
    outcome = ended[1][name]
    assert outcome["status"] == 2 and outcome["stdout"] == ""
    assert outcome["stderr"].startswith("error: ") and outcome["stderr"].count("\n") == 1
    assert sentence in outcome["stderr"]
