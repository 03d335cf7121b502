"""The table of methods in the README is the one that the code prints."""

import pathlib
import subprocess
import sys

from pfljax.algorithms import ALGORITHMS

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, str(ROOT / "experiments" / "methods.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_readme_has_the_table_of_today(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    done = run(f"--write={copy}")
    assert done.returncode == 0, done.stderr
    assert copy.read_text() == (ROOT / "README.md").read_text(), (
        "run python experiments/methods.py --write=README.md"
    )
    assert all(f"| `{name}` |" in copy.read_text() for name in ALGORITHMS)


def test_the_page_of_methods_is_that_of_today(tmp_path):
    page = tmp_path / "methods.md"
    done = run(f"--page={page}")
    assert done.returncode == 0, done.stderr
    assert page.read_text() == (ROOT / "docs" / "methods.md").read_text(), (
        "run python experiments/methods.py --page=docs/methods.md"
    )
    assert all(f"\n`{name}`: " in page.read_text() for name in ALGORITHMS)


def test_a_file_without_marks_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing here")
    done = run(f"--write={page}")
    assert done.returncode == 2 and "methods: begin" in done.stderr
    assert page.read_text() == "nothing here"
