"""BUILD matches the sources: dependencies, directions of imports, and restricted imports."""

import ast
import pathlib
import sys
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# A package may import packages of lower layers, and none of its own layer.
LAYERS = (
    {"errors"},
    {"core", "extensions"},
    {"ops"},
    {"aggregation"},
    {"data", "models", "algorithms", "metrics", "engine"},
    {"tasks"},
    {"training"},
    {"report"},
    {"api"},
    {"cli"},
    {"configs", "peer"},
    {"benchmarking", "held_out", "torch_network", "jax_network"},
)
MAPPING = "pfljax/engine/mapping.py"
MAPS = {"vmap", "pmap", "shard_map"}
# Files that may map over other things than clients.
OTHER_MAPS: frozenset[str] = frozenset(
    {
        "pfljax/algorithms/cfl.py",  # over the clusters and the cohort's updates, at the server
        "pfljax/algorithms/fedcross.py",  # over the ids of the cohort, at the server
        "pfljax/algorithms/fedem.py",  # over the learners
        "pfljax/algorithms/fedgc.py",  # over the cohort's heads, at the server
        "pfljax/algorithms/fedgmm.py",  # over the learners, and their terms of a sum
        "pfljax/algorithms/fedgen.py",  # over the cohort's heads, at the server
        "pfljax/algorithms/fedjets.py",  # over the experts
        "pfljax/algorithms/ifca.py",  # over the models of the clusters
        "pfljax/ops/averaging.py",  # over several models of the server
        "pfljax/ops/linear_algebra.py",  # over the matrices of a batch
        "pfljax/ops/losses.py",  # over the outputs of a model
        "pfljax/ops/mixtures.py",  # over the components
        "pfljax/ops/stacked.py",  # over the models that one client holds
        "pfljax/ops/trees.py",  # over the numbers of an example
    }
)
NOWHERE = {"tensorflow", "clu", "chex"}


class Target(NamedTuple):
    """A rule in BUILD.

    Attributes:
      rule: such as py_library.
      srcs: paths of files.
      deps: labels.
    """

    rule: str
    srcs: list[str]
    deps: set[str]


def read_build(root: pathlib.Path) -> dict[str, Target]:
    """Returns the Python targets of the root's BUILD by name. BUILD is valid Python."""
    targets = {}

    def rule(kind):
        def declare(name, srcs, deps=(), **_):
            targets[name] = Target(kind, srcs, set(deps))

        return declare

    def glob(include, exclude=()):
        def paths(patterns):
            return {p.relative_to(root).as_posix() for each in patterns for p in root.glob(each)}

        return sorted(paths(include) - paths(exclude))

    def ignore(*_, **__):
        pass

    rules = {kind: rule(kind) for kind in ("py_library", "py_binary", "py_test")}
    others = {"load": ignore, "package": ignore, "filegroup": ignore, "glob": glob}
    exec((root / "BUILD").read_text(), {**rules, **others})
    return targets


def imported(path: str, tree: ast.AST) -> set[str]:
    """Returns the dotted names that a file imports; `from a import b` counts as `a.b`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.split("/")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            start = [*above, node.module] if node.module else above
            names.update(".".join([*start, alias.name]) for alias in node.names)
    return names


def label(name: str, experiments: set[str]) -> str | None:
    """Returns the label of the target that provides a dotted name; None for Python's own."""
    first, *rest = name.split(".")
    if first == "pfljax":
        return f":{rest[0]}"
    if first in experiments:
        return f":{first}"
    return None if first in sys.stdlib_module_names else f"//third_party:{first}"


def maps(tree: ast.AST) -> set[str]:
    """Returns those of `MAPS` that a file names, whatever it imports them from or as."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.update(node.name.split("."))
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(node.module.split("."))
    return names & MAPS


def faults(root: pathlib.Path) -> list[str]:
    """Returns what is wrong with a source tree and its BUILD, a sentence each."""
    targets = read_build(root)
    layer_of = {package: number for number, layer in enumerate(LAYERS) for package in layer}
    paths = [
        path.relative_to(root).as_posix()
        for folder in ("pfljax", "experiments", "configs", "tests")
        for path in sorted((root / folder).rglob("*.py"))
    ]
    trees = {path: ast.parse((root / path).read_text()) for path in paths}
    imports = {path: imported(path, tree) for path, tree in trees.items()}
    experiments = {
        name
        for path in paths
        if path.startswith("experiments/")
        for name in (pathlib.Path(path).stem, path.split("/")[1])
    }
    found = []

    owned = {path for target in targets.values() for path in target.srcs}
    found += [f"{path} is in no target" for path in paths if path not in owned]

    for name, target in targets.items():
        if target.rule == "py_test" or target.srcs[0].startswith("tests/"):
            continue  # Tests may use everything.
        if target.rule == "py_library" and name not in layer_of:
            found.append(f"{name} is in no layer")
        number = layer_of.get(name, len(LAYERS))
        needed = {label(item, experiments) for path in target.srcs for item in imports[path]}
        needed -= {None, f":{name}"}
        found += [f"{name} imports {dep} and does not declare it" for dep in needed - target.deps]
        found += [f"{name} declares {dep} and does not import it" for dep in target.deps - needed]
        found += [
            f"{name} must not import {dep}"
            for dep in needed
            if dep.startswith(":") and layer_of.get(dep[1:], len(LAYERS)) >= number
        ]

    for path, tree in trees.items():
        packages = {name.split(".")[0] for name in imports[path]}
        found += [f"{path} imports {name}" for name in packages & NOWHERE]
        if path.startswith("pfljax/"):
            if "flax" in packages and not path.startswith("pfljax/models/"):
                found.append(f"{path} imports flax")
            if path not in {MAPPING, *OTHER_MAPS}:
                found += [f"{path} uses {name}" for name in maps(tree)]
    return sorted(found)


def test_build_says_what_the_sources_do():
    assert faults(ROOT) == []


def test_mapping_is_where_the_maps_are():
    assert {"vmap", "pmap"} <= maps(ast.parse((ROOT / MAPPING).read_text()))


def test_third_party_names_what_is_used():
    (names,) = (
        ast.literal_eval(node.generators[0].iter)
        for node in ast.walk(ast.parse((ROOT / "third_party/BUILD").read_text()))
        if isinstance(node, ast.ListComp)
    )
    used = {dep for target in read_build(ROOT).values() for dep in target.deps}
    assert {f"//third_party:{name}" for name in names} == {d for d in used if d.startswith("//")}
    assert names == sorted(names)


TINY_BUILD = """
load("@rules_python//python:defs.bzl", "py_binary", "py_library")
py_library(name = "errors", srcs = ["pfljax/__init__.py", "pfljax/errors.py"])
py_library(name = "core", srcs = glob(["pfljax/core/*.py"]), deps = ["//third_party:jax"])
py_library(name = "models", srcs = glob(["pfljax/models/*.py"]), deps = [":core", ":errors"])
py_library(name = "engine", srcs = glob(["pfljax/engine/*.py"]), deps = [":core"])
py_library(name = "peer", srcs = ["experiments/peer.py"], deps = [":errors"])
py_binary(name = "train", srcs = ["experiments/train.py"], deps = [":peer"])
"""
TINY_TREE = {
    "BUILD": TINY_BUILD,
    "pfljax/__init__.py": "",
    "pfljax/errors.py": "import os",
    "pfljax/core/__init__.py": "from . import tree",
    "pfljax/core/tree.py": "import jax.numpy as jnp",
    "pfljax/models/net.py": "from pfljax import core\nfrom ..errors import UserError",
    "pfljax/engine/mapping.py": "from pfljax import core\nrun = core.tree.jax.vmap",
    "experiments/peer.py": "import pfljax.errors",
    "experiments/train.py": "import peer",
}


def faults_of(root: pathlib.Path, changes: dict[str, str]) -> list[str]:
    for path, content in {**TINY_TREE, **changes}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return faults(root)


def test_no_fault_in_the_tiny_tree(tmp_path):
    assert faults_of(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("path", "content", "fault"),
    [
        (
            "pfljax/core/tree.py",
            "import jax, numpy as np",
            "core imports //third_party:numpy and does not declare it",
        ),
        ("pfljax/core/tree.py", "", "core declares //third_party:jax and does not import it"),
        ("pfljax/core/late.py", "def f():\n  import optax", "core imports //third_party:optax and"),
        ("pfljax/core/up.py", "from ..engine import mapping", "core must not import :engine"),
        ("pfljax/models/side.py", "import pfljax.engine.mapping", "models must not import :engine"),
        ("pfljax/errors.py", "from pfljax import core", "errors must not import :core"),
        ("experiments/peer.py", "import train", "peer must not import :train"),
        ("pfljax/stray.py", "", "pfljax/stray.py is in no target"),
        ("experiments/new.py", "", "experiments/new.py is in no target"),
        ("pfljax/core/v.py", "import jax\nf = jax.vmap(abs)", "pfljax/core/v.py uses vmap"),
        ("pfljax/core/p.py", "from jax import pmap as p", "pfljax/core/p.py uses pmap"),
        (
            "pfljax/engine/s.py",
            "from jax.experimental.shard_map import x",
            "pfljax/engine/s.py uses shard_map",
        ),
        ("pfljax/core/f.py", "from flax import linen", "pfljax/core/f.py imports flax"),
        ("tests/x_test.py", "import tensorflow as tf", "tests/x_test.py imports tensorflow"),
        ("pfljax/core/c.py", "import chex", "pfljax/core/c.py imports chex"),
        (
            "BUILD",
            TINY_BUILD + 'py_library(name = "attic", srcs = ["pfljax/core/tree.py"])',
            "attic is in no layer",
        ),
    ],
)
def test_a_fault_is_found(tmp_path, path, content, fault):
    assert any(found.startswith(fault) for found in faults_of(tmp_path, {path: content}))
