"""docs/config.md is the page that the sources make, and says something of every key."""

import pathlib
import subprocess
import sys

import pytest

from pfljax.training.study.config import default_config
from pfljax.training.study.config_values import flat

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page():
    command = [sys.executable, str(ROOT / "experiments" / "config_keys.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_is_of_today(page):
    assert page == (ROOT / "docs" / "config.md").read_text(), (
        "run python experiments/config_keys.py --write=docs/config.md"
    )


def test_every_key_has_a_meaning(page):
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    meanings = {row[0].strip("| `"): row[2].strip(" |") for row in rows}
    for key, value in flat(default_config()).items():
        if key.startswith("learning_rates."):
            continue
        assert meanings[key] or key.endswith(".imbalance"), f"{key} needs a comment in config.py"
        assert f"| `{key}` | `{value!r}` |" in page


def test_a_meaning_may_take_several_lines(page):
    assert "partition drops owners with fewer" in page
    assert "| `cohort.dropout` | `0.0` | dropout: " in page
    assert "| `hparams.ditto.lam` | `0.1` | Weight of the proximal term to the global model" in page
