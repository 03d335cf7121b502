"""Prints the page of all config keys with meaning and default: docs/config.md.

    python experiments/config_keys.py [--write=docs/config.md]

The meaning of a key is the comment at or above its line in `pfljax/training/study/config.py`; that
of a hyper-parameter, an option of a data set or an argument of a model is taken from the docstring
of the method, aggregator, loader or model.
"""

from __future__ import annotations

import ast
import inspect
import io
import pathlib
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from pfljax import data, models
from pfljax.aggregation import AGGREGATORS
from pfljax.algorithms import ALGORITHMS
from pfljax.cli import app
from pfljax.training.study import config as config_lib
from pfljax.training.study import config_values

_WRITE = flags.DEFINE_string("write", None, "The file to write, such as docs/config.md.")

_HEAD = """# Config keys

Every config has these keys. Config files and the command line override their defaults:
`--config.data.alpha=0.5`. `--print_config` prints the resulting values. This page is generated from
the sources by `python experiments/config_keys.py --write=docs/config.md`.

"""
# Groups of keys without a separate row for each method or data set.
_GROUPS = (
    *("hparams.", "data.options.", "learning_rates."),
    *(f"aggregation.{name}." for name in AGGREGATORS),
)
_OPTIMIZERS = ("client_optimizer.", "server_optimizer.")


def comments() -> dict[str, str]:
    """Returns the comment of each key in `default_config`."""
    source = textwrap.dedent(inspect.getsource(config_lib.default_config))
    said = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }

    def at(line: int) -> str:
        if line in said:
            return said[line][0]
        block = []
        while said.get(line - 1, ("", False))[1]:
            line -= 1
            block.insert(0, said[line][0])
        return " ".join(block)

    return {key: at(line) for key, line in _lines(ast.parse(source))}


def _lines(tree: ast.AST) -> list[tuple[str, int]]:
    """Returns the line that sets each key, outer keys first."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        key = ast.unparse(node.targets[0]).removeprefix("config.")
        found.append((key, node.lineno))
        if isinstance(node.value, ast.Dict):
            found += [
                (f"{key}.{inner.value}", inner.lineno)
                for inner in node.value.keys
                if isinstance(inner, ast.Constant) and inner.lineno != node.lineno
            ]
    return found


def argument(factory: Callable, name: str) -> str:
    """Returns the description of an argument in a docstring."""
    lines = inspect.getdoc(factory).splitlines()
    if "Args:" not in lines:
        return ""
    said = []
    for line in lines[lines.index("Args:") + 1 :]:
        if not line.startswith("  "):
            break
        begins = re.match(r"  (\w+(?:, \w+)*): (.*)", line)
        if begins:
            said = [begins[2]] if name in begins[1].split(", ") else said if said else []
            if said and name not in begins[1].split(", "):
                break
        elif said:
            said.append(line.strip())
    return " ".join(said)


def _row(key: str, default: object, meaning: str) -> str:
    cells = (f"`{key}`", f"`{default!r}`", meaning.replace("|", "\\|"))
    return "| " + " | ".join(cells) + " |\n"


def _table(rows: list[str]) -> str:
    return "| key | default | meaning |\n| --- | --- | --- |\n" + "".join(rows) + "\n"


def page() -> str:
    """Returns the page in Markdown."""
    default = config_lib.default_config()
    said, keys = comments(), config_values.flat(default)
    rows = [
        _row(key, keys[key], said.get(key) or _of_group(key, said))
        for key in _in_order(keys, said)
        if not key.startswith(_GROUPS)
    ]
    text = _HEAD + _table(rows)
    text += f"`learning_rates.METHOD`, for every method: {said['learning_rates']}\n\n"
    factories_of_methods = {name: row.factory for name, row in ALGORITHMS.items()}
    for title, prefix, factories in (
        ("Hyper-parameters of methods", "hparams", factories_of_methods),
        ("Hyper-parameters of aggregators", "aggregation", AGGREGATORS),
        ("Options of data sets", "data.options", data.SOURCES),
    ):
        rows = [
            _row(f"{prefix}.{name}.{key}", value, argument(factory, key.split(".")[0]))
            for name, factory in factories.items()
            for key, value in _flat(config_lib.hyperparameters(factory))
        ]
        text += f"## {title}\n\n{_table(rows)}"
    rows = [
        _row(f"model.{parameter.name}", _default(parameter), f"`{name}`. {argument(model, key)}")
        for name, model in models.MODELS.items()
        for key, parameter in list(inspect.signature(model).parameters.items())[2:]
    ]
    text += "## Arguments of models\n\nArguments of the model selected by `model.name`.\n\n"
    return text + _table(rows).rstrip("\n") + "\n"


def _flat(found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields keys and values, with keys of a network as 'NAME.name'."""
    for key, value in found.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", one) for inner, one in value.items())
        else:
            yield key, value


def _in_order(keys: dict[str, object], said: dict[str, str]) -> list[str]:
    """Returns keys in the order of the source, those of an optimizer at its position."""
    order = {key: number for number, key in enumerate(said)}

    def position(key):
        parents = [key.rsplit(".", cut)[0] for cut in range(key.count(".") + 1)]
        return min(order[parent] for parent in parents if parent in order)

    return sorted(keys, key=position)


def _of_group(key: str, said: dict[str, str]) -> str:
    """Returns the description of a key from that of its group."""
    name = key.split(".")[-1]
    if key.startswith(_OPTIMIZERS):
        return argument(config_lib.optimizer_config, name) or (
            f"passed to the optimizer as `{name}`; None leaves optax's default"
        )
    parent = key.rpartition(".")[0]
    sentences = re.split(r"; (?=\w+[ :])", said.get(parent, ""))
    otherwise = ""
    if parent == "client_schedule":
        sentences = re.split(r"; (?=\w+:)", said[parent])
        otherwise = f"passed to the schedule as `{name}`; None leaves optax's default"
    return next((one for one in sentences if one.startswith(name)), otherwise)


def _default(parameter: inspect.Parameter) -> object:
    return None if parameter.default is parameter.empty else parameter.default


def main():
    if _WRITE.value is None:
        print(page(), end="")
    else:
        pathlib.Path(_WRITE.value).write_text(page())


if __name__ == "__main__":
    app.run(main)
