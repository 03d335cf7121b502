"""The command users.py, on runs written by hand."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from pfljax.training.run import writers

ROOT = pathlib.Path(__file__).parents[2]
AGES = np.array(["young", "old", "old", "young", ""] * 8)
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
        # The same runs in two comparisons, with the groups that the data set knows.
        arrays["client_name"] = np.array([f"user {number}" for number in range(40)])
        arrays["group_age"] = AGES
        for network, better in (("wide", 0.0), ("deep", 0.1), ("of another seed", 0.0)):
            other = root / "networks" / network / method / "seed_0"
            other.mkdir(parents=True)
            result = {
                "algorithm": method,
                "seed": 0,
                "model": network,
                "user_features": {"deep": "difference"}.get(network, "none"),
                "data_seed": len(network),
            }
            writers.write_json(other / "result.json", result)
            np.savez(other / "clients.npz", personal_test_accuracy=scores + better, **arrays)
    rows = "".join(f"{client},{'ab'[client // 20]}\n" for client in range(40))
    (root / "groups.csv").write_text("client,group\n" + rows)
    (root / "ages.csv").write_text("client,age\n1,30\n")
    given = ["users.py", f"--workdir={root}"]
    commands = {
        "table": [*given, f"--groups={root}/groups.csv"],
        "columns": [*given, f"--groups={root}/ages.csv"],
        "reference": [*given, "--against=ditto"],
        "nothing": ["users.py"],
        "networks": [
            *("users.py", f"--workdir={root}/networks", "--against=wide/local"),
            "--group=age",
        ],
        "attribute": [
            *("users.py", f"--workdir={root}/networks", "--against=wide/local", "--group=gender"),
        ],
        "no group": [*given, "--group=age"],
        "both": [*given, f"--groups={root}/groups.csv", "--group=age"],
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


def test_comparisons_with_different_models(ended):
    outcome = ended[1]["networks"]
    assert (outcome["status"], outcome["stderr"]) == (0, "")
    names = [line.split("|")[1].strip() for line in outcome["stdout"].splitlines()[2:6]]
    assert names == ["wide/local", "deep/fedavg", "deep/local", "wide/fedavg"]
    lines = {line.split("|")[1].strip(): line for line in outcome["stdout"].splitlines()[2:6]}
    assert "| +10.00 (+10.00 to +10.00) | 100 |" in lines["deep/local"]
    young, old = (SCORES["local"][AGES == name].mean() for name in ("young", "old"))
    assert lines["wide/local"].endswith(f"| {100 * abs(young - old):.2f} |")
    assert "of another seed/local is not shown: its runs have data_seed 15" in outcome["stdout"]
    assert "old (16 clients), young (16 clients); 8 clients" in outcome["stdout"]


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("columns", "has the columns client, age; it needs exactly the columns client and group."),
        ("reference", "'ditto'; known are fedavg, local."),
        ("attribute", "known are age."),
        ("no group", "has no groups of clients; pass a file of groups."),
        ("both", "Pass --groups=FILE.csv or --group=NAME, not both."),
        ("nothing", "Pass the work directory of a comparison with --workdir=DIR."),
    ],
)
def test_mistakes_give_one_sentence(ended, name, sentence):
    outcome = ended[1][name]
    assert outcome["status"] == 2 and outcome["stdout"] == ""
    assert outcome["stderr"].startswith("error: ") and outcome["stderr"].count("\n") == 1
    assert sentence in outcome["stderr"]
