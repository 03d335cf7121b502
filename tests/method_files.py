"""The file of tests that each method has, read and not imported."""

from __future__ import annotations

import ast
import pathlib

_FOLDER = pathlib.Path(__file__).parent / "algorithms"


def tests_of(name: str) -> list[str]:
    """Returns the names of the tests in `tests/algorithms/NAME_test.py` of a method."""
    path = _FOLDER / f"{name}_test.py"
    assert path.exists(), f"write the tests of {name} in {path.name}; see CONTRIBUTING.md"
    body = ast.parse(path.read_text()).body
    return [
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
