"""The example of a method in README.md is the code of its file."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def function(source: str) -> str:
    """Returns the one function in the source, without docstrings and layout."""
    (found,) = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    if isinstance(found.body[0], ast.Expr):
        found.body = found.body[1:]
    return ast.unparse(found)


def test_the_method_in_the_readme_is_that_of_the_file():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (shown,) = (block for block in blocks if "def fedprox(" in block)
    written = (ROOT / "pfljax/algorithms/fedprox.py").read_text()
    assert function(shown) == function(written)
