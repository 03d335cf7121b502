"""The API pages: every public name, with an example that the doctests run."""

import doctest
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

import pfljax

PAGES = pathlib.Path(__file__).parents[2] / "docs" / "api"


def test_the_page_has_every_public_name_once():
    text = (PAGES / "index.md").read_text()
    named = re.findall(r"^\.\. auto\w+:: pfljax\.(\w+)$", text, re.MULTILINE)
    assert sorted(named) == sorted(pfljax.__all__)


@pytest.mark.parametrize("name", pfljax.__all__)
def test_every_public_name_has_an_example(name):
    value = getattr(pfljax, name)
    parser = doctest.DocTestParser()
    assert parser.get_examples(value.__doc__), name
    # `doctests_test.py` runs the examples of the modules of pfljax, where it is defined.
    assert value.__module__.startswith("pfljax.")


@pytest.mark.skipif(importlib.util.find_spec("myst_nb") is None, reason="needs the extra 'docs'")
def test_the_pages_are_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", str(PAGES), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "from_hugging_face" in (tmp_path / "index.html").read_text()
