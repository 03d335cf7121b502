"""partition.py as users run it: its table, its pictures, and how it refuses."""

import os
import pathlib
import subprocess
import sys

import pytest

from pfljax.report.partitions import PICTURES

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "experiments/partition.py", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_table_and_the_pictures(tmp_path):
    done = run(
        "--config=configs/quickstart.py",
        "--config.data.partition=shards",
        "--config.data.unseen_fraction=0.1",
        f"--output={tmp_path / 'new'}",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "digits, 20 clients (2 unseen), shards (shards_per_client=2)" in done.stdout
    assert "distance to another client" in done.stdout and "1,797" in done.stdout
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == sorted(PICTURES)
    for name in PICTURES:
        assert (tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--config="),
        (["--config=configs/quickstart.py", "--output={file}"], "choose another --output"),
        (
            ["--config=configs/quickstart.py", "--config.data.partition=shard"],
            "did you mean 'shards'",
        ),
        (
            [
                "--config=configs/quickstart.py", "--config.data.num_clients=200",
                "--config.data.alpha=0.01", "--config.data.min_size=8",
            ],
            "use num_clients=",
        ),
    ],
)  # fmt: skip
def test_a_user_error_prints_one_line(tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    done = run(*(argument.format(file=tmp_path / "file") for argument in arguments))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
