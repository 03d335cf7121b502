"""Prints the methods as a table in Markdown: the one in README.md, between its two marks.

    python experiments/methods.py [--write=README.md]

What server and client hold, and the year, are read from the methods' docstrings; the bytes are
counted from shapes, for the MLP 784-100-10 and 20 clients with 10 classes; "sum" tells that the
server needs to see no client's message, only their total, so that secure aggregation and
differential privacy could be added; pfljax has neither clipping and noise nor masks.
"""

from __future__ import annotations

import inspect
import pathlib
import re
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from pfljax import core, models, tasks
from pfljax.algorithms import ALGORITHMS, FAMILIES
from pfljax.cli import app
from pfljax.engine.accounting import traffic
from pfljax.engine.examples import Examples
from pfljax.errors import UserError

_WRITE = flags.DEFINE_string("write", None, "A file whose table is to be replaced.")
_BEGIN, _END = "<!-- methods: begin -->\n", "<!-- methods: end -->\n"
_NUM_CLIENTS, _NUM_CLASSES, _SHAPE = 20, 10, (28, 28, 1)
# Methods refuse models that they cannot use; the first one that a method takes is counted.
_MODELS = ("mlp", "mlp_bn")


class Row(NamedTuple):
    """One method of the table; see the module's docstring."""

    name: str
    family: str
    year: str
    server: str
    client: str
    up: int
    down: int
    only_sum: bool
    lines: int


def row(name: str, family: str) -> Row:
    """Reads and counts what the table says of a method."""
    module = sys.modules[ALGORITHMS[name].__module__]
    holds = re.search(r"^Server: (.+?)\.\s+Client:\s+(.+?)\.(?:\s|$)", module.__doc__, re.S | re.M)
    year = re.search(r'",\s+(\d{4}),', module.__doc__)
    if holds is None:
        raise ValueError(f"The docstring of {name} has no line 'Server: ... Client: ...'.")
    server, client = (" ".join(text.split()) for text in holds.groups())
    up, down, only_sum = count(name)
    lines = len(inspect.getsource(module).splitlines())
    return Row(
        name, family, year.group(1) if year else "", server, client, up, down, only_sum, lines
    )


def count(name: str) -> tuple[int, int, bool]:
    """Returns a method's bytes up and down, and whether it uploads through `sum` alone."""
    for model in _MODELS:
        network = models.MODELS[model](_SHAPE, _NUM_CLASSES)
        task = tasks.classification(network, num_classes=_NUM_CLASSES)
        algorithm = ALGORITHMS[name](task, core.LocalTraining(optax.sgd(0.1)))
        examples, key = population(), jax.random.key(0)
        try:
            server = jax.eval_shape(algorithm.init_server, key, examples.population())
        except UserError:
            continue
        profile = examples.profile(jnp.int32(0))
        client = jax.eval_shape(algorithm.init_client, server, profile, key)
        counted = traffic.count(algorithm, server, client, examples)
        return counted.upload, counted.download, counted.upload_each == 0
    raise ValueError(f"{name} takes none of the models {', '.join(_MODELS)}.")


def population() -> Examples:
    """Twenty clients with one example of each class."""
    offsets = np.arange(_NUM_CLIENTS, dtype=np.int32) * _NUM_CLASSES
    sizes = np.full(_NUM_CLIENTS, _NUM_CLASSES, np.int32)
    labels = np.tile(np.arange(_NUM_CLASSES, dtype=np.int32), _NUM_CLIENTS)
    splits = ("train", "validation", "test")
    return Examples(
        inputs=jnp.zeros((len(labels), *_SHAPE), jnp.uint8),
        targets=jnp.asarray(labels),
        offsets={split: jnp.asarray(offsets) for split in splits},
        sizes={split: jnp.asarray(sizes) for split in splits},
        class_counts=jnp.ones((_NUM_CLIENTS, _NUM_CLASSES), jnp.int32),
        max_train_size=_NUM_CLASSES,
        num_participants=_NUM_CLIENTS,
    )


def table() -> str:
    """Returns the table in Markdown."""
    head = ("method", "year", "family", "server holds", "client holds")
    head += ("up (kB)", "down (kB)", "`sum` suffices", "lines")
    out = [head, ("---",) * 5 + ("---:",) * 2 + ("---",) + ("---:",)]
    for family, names in FAMILIES.items():
        for name in names:
            r = row(name, family)
            kilobytes = (f"{r.up / 1000:.1f}", f"{r.down / 1000:.1f}")
            sums = "yes" if r.only_sum else "no"
            out.append(
                (f"`{name}`", r.year, family, r.server, r.client, *kilobytes, sums, str(r.lines))
            )
    return "".join("| " + " | ".join(cells) + " |\n" for cells in out)


def main():
    if _WRITE.value is None:
        print(table(), end="")
        return
    path = pathlib.Path(_WRITE.value)
    text = path.read_text() if path.exists() else ""
    if text.count(_BEGIN) != 1 or text.count(_END) != 1:
        raise UserError(f"{path} has no lines {_BEGIN.strip()} and {_END.strip()}; add them.")
    before, rest = text.split(_BEGIN)
    path.write_text(before + _BEGIN + table() + _END + rest.split(_END)[1])


if __name__ == "__main__":
    app.run(main)
