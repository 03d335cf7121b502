"""Every requirement has its reason, its licence and a pin."""

import ast
import pathlib
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
THIRD_PARTY = ROOT / "third_party"


def requirements() -> dict[str, Requirement]:
    """Returns what `setup.py` asks for, by canonical name."""
    (call,) = (
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "setuptools.setup"
    )
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    listed = ast.literal_eval(given["install_requires"])
    for extra in ast.literal_eval(given["extras_require"]).values():
        listed += extra
    parsed = [Requirement(text) for text in listed]
    return {canonicalize_name(each.name): each for each in parsed}


def pins(file: str) -> dict[str, str]:
    """Returns `{canonical name: version}`; every line is a pin or a comment."""
    versions = {}
    for line in (THIRD_PARTY / file).read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups()
            assert canonicalize_name(name) not in versions, f"{name} has two pins"
            versions[canonicalize_name(name)] = version
    return versions


def rows() -> dict[str, list[str]]:
    """Returns the rows of README.md's tables of requirements: range, licence, why."""
    lines = (THIRD_PARTY / "README.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return {
        canonicalize_name(name): rest
        for name, *rest in cells
        if len(rest) == 3 and name not in ("requirement", "---")
    }


REQUIREMENTS = requirements()


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_requirement_has_its_row(name):
    range_, licence, why = rows()[name]
    assert range_ == str(REQUIREMENTS[name].specifier)
    assert licence and why


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_requirement_has_its_pin(name):
    version = {**pins("requirements.txt"), **pins("requirements-extras.txt")}[name]
    assert version in REQUIREMENTS[name].specifier


def test_no_row_is_left_over():
    assert rows().keys() == REQUIREMENTS.keys()


def test_no_pin_of_an_extra_is_left_over():
    assert pins("requirements-extras.txt").keys() <= REQUIREMENTS.keys()
    assert not pins("requirements-extras.txt").keys() & pins("requirements.txt").keys()
