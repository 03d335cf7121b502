"""Prints the methods as a table in Markdown: the one in README.md, between its markers.

    python experiments/methods.py [--write=README.md]

Year and family come from the rows of the registry, the states of server and client from the
docstrings of the methods. The bytes are counted from shapes, for the MLP 784-100-10, 20 clients
with 10 classes, and 1,000 examples at the server if the method needs some. "sum only" marks methods
whose server needs only the sum of the client updates, so that every aggregator of
`pfljax/aggregation/` can be used and secure aggregation could be added.
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
from pfljax.algorithms import ALGORITHMS, TAGS
from pfljax.cli import app
from pfljax.engine.accounting import traffic
from pfljax.engine.examples import Examples
from pfljax.errors import UserError

_WRITE = flags.DEFINE_string("write", None, "File whose table is replaced.")
_BEGIN, _END = "<!-- methods: begin -->\n", "<!-- methods: end -->\n"
_NUM_CLIENTS, _NUM_CLASSES, _SHAPE = 20, 10, (28, 28, 1)
_NUM_SERVER_EXAMPLES = 1000
# Some methods reject some models; the first model that a method accepts is counted.
_MODELS = ("mlp", "mlp_bn")


class Row(NamedTuple):
    """A row of the table; see the docstring of the module."""

    name: str
    year: str
    family: str
    server: str
    client: str
    up: int
    down: int
    only_sum: bool
    lines: int


def row(name: str) -> Row:
    """Returns the row of a method, read from the registry and docstring and counted from shapes."""
    method = ALGORITHMS[name]
    module = sys.modules[method.factory.__module__]
    holds = re.search(r"^Server: (.+?)\.\s+Client:\s+(.+?)\.(?:\s|$)", module.__doc__, re.S | re.M)
    if holds is None:
        raise ValueError(f"The docstring of {name} has no line 'Server: ... Client: ...'.")
    server, client = (" ".join(text.split()) for text in holds.groups())
    up, down, only_sum = count(name)
    lines = len(inspect.getsource(module).splitlines())
    year, family = str(method.year or ""), ", ".join(method.tags)
    return Row(name, year, family, server, client, up, down, only_sum, lines)


def count(name: str) -> tuple[int, int, bool]:
    """Returns the upload and download bytes of a method, and whether it uploads only a sum."""
    needs_server_data = "server_data" in ALGORITHMS[name].needs
    held = {"server_data": server_data()} if needs_server_data else {}
    for model in _MODELS:
        network = models.MODELS[model](_SHAPE, _NUM_CLASSES)
        task = tasks.classification(network, num_classes=_NUM_CLASSES)
        try:
            algorithm = ALGORITHMS[name](task, core.LocalTraining(optax.sgd(0.1)), **held)
        except UserError:
            continue
        examples, key = population(), jax.random.key(0)
        server = jax.eval_shape(algorithm.init_server, examples.population(), key)
        profile = examples.profile(jnp.int32(0))
        client = jax.eval_shape(algorithm.init_client, server, profile, key)
        counted = traffic.count(algorithm, server, client, examples)
        return counted.upload, counted.download, counted.upload_each == 0
    raise ValueError(f"{name} accepts none of the models {', '.join(_MODELS)}.")


def population() -> Examples:
    """Returns a population of twenty clients with one example of each class."""
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
        max_eval_size=_NUM_CLASSES,
        num_participants=_NUM_CLIENTS,
    )


def server_data() -> core.ClientData:
    """Returns the examples that the server holds, for methods that need some."""
    size = _NUM_SERVER_EXAMPLES
    return core.ClientData(
        inputs=jnp.zeros((size, *_SHAPE), jnp.uint8),
        targets=jnp.zeros(size, jnp.int32),
        offset=jnp.int32(0),
        size=jnp.int32(size),
        class_counts=jnp.zeros(_NUM_CLASSES, jnp.int32),
        max_size=size,
    )


def table() -> str:
    """Returns the table in Markdown."""
    head = ("method", "year", "family", "server state", "client state")
    head += ("upload (kB)", "download (kB)", "sum only", "lines")
    out = [head, ("---",) * 5 + ("---:",) * 2 + ("---",) + ("---:",)]
    for name in sorted(ALGORITHMS, key=lambda name: TAGS.index(ALGORITHMS[name].tags[0])):
        r = row(name)
        kilobytes = (f"{r.up / 1000:.1f}", f"{r.down / 1000:.1f}")
        sums = "yes" if r.only_sum else "no"
        out.append(
            (f"`{name}`", r.year, r.family, r.server, r.client, *kilobytes, sums, str(r.lines))
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
