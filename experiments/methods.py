"""Prints the methods as a table in Markdown: the one in README.md, between its markers.

    python experiments/methods.py [--write=README.md] [--page=docs/methods.md]

`--page` writes a page of the methods by idea, with a formula and a paragraph each, made of the
docstrings.

Year and family come from the rows of the registry, the states of server and client from the
docstrings of the methods. The bytes are counted from shapes, for the MLP 784-100-10 or the first
other model that a method accepts, 20 clients with 10 classes, and 1,000 examples at the server if
the method needs some. "sum only" marks methods whose server needs only the sum of the client
updates, so that every aggregator of `pfljax/aggregation/` can be used and secure aggregation could
be added.
"""

from __future__ import annotations

import inspect
import pathlib
import re
import sys
import textwrap
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from pfljax import core, models, tasks
from pfljax.algorithms import ALGORITHMS, TAGS
from pfljax.cli import app
from pfljax.core.params import split_params
from pfljax.engine.accounting import traffic
from pfljax.engine.examples import Examples
from pfljax.errors import UserError
from pfljax.models import adapters

_WRITE = flags.DEFINE_string("write", None, "File whose table is replaced.")
_PAGE = flags.DEFINE_string("page", None, "File for the page of all methods.")
_BEGIN, _END = "<!-- methods: begin -->\n", "<!-- methods: end -->\n"
_NUM_CLIENTS, _NUM_CLASSES, _SHAPE = 20, 10, (28, 28, 1)
_NUM_SERVER_EXAMPLES = 1000
# Some methods reject some models; the first model that a method accepts is counted. The number of
# prompts is that of an adapter, beside which the model is frozen; 0 for a model that is trained.
_MODELS = (
    ("mlp", {}, 0),
    ("mlp_bn", {}, 0),
    ("vit", {"adapter_width": 64}, 0),
    ("vit", {}, 10),
    ("two_tower", {}, 10),
)


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
    for model, arguments, num_prompts in _MODELS:
        network = models.MODELS[model](_SHAPE, _NUM_CLASSES, **arguments)
        task = tasks.classification(network, num_classes=_NUM_CLASSES)
        if num_prompts:
            task = _prompted(network, num_prompts)
        try:
            local = core.LocalTraining(optax.sgd(0.1), learning_rate=0.1)
            algorithm = ALGORITHMS[name](task, local, **held)
        except UserError:
            continue
        examples, key = population(), jax.random.key(0)
        server = jax.eval_shape(algorithm.init_server, examples.population(), key)
        profile = examples.profile(jnp.int32(0))
        client = jax.eval_shape(algorithm.init_client, server, profile, key)
        counted = traffic.count(algorithm, server, client, examples)
        return counted.upload, counted.download, counted.upload_each == 0
    raise ValueError(f"{name} accepts none of the models {_MODELS}.")


def _prompted(network: models.Model, num_prompts: int) -> core.Task:
    """Returns a frozen task that trains prompts, and the head if these are in the body."""
    part = "body" if network.class_features is None else "head"
    kind = adapters.prompt(tokens=num_prompts)
    network = adapters.attach(network, kind, lambda path: path[0] == part)
    task = tasks.classification(network, num_classes=_NUM_CLASSES)

    def is_trained(path):
        return task.is_prompt(path) or (task.is_head(path) and part == "body")

    shapes = jax.eval_shape(task.init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return tasks.freeze(task, split_params(zeros, is_trained)[1], is_trained)


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


def entry(name: str) -> str:
    """Returns the part of the page on a method: what is new, its rule, its states and messages."""
    method = ALGORITHMS[name]
    module = inspect.cleandoc(sys.modules[method.factory.__module__].__doc__)
    summary, _, rest = module.partition("\n\n")
    described, _, references = rest.partition("\n\nReferences:\n")
    what, _, more = inspect.cleandoc(method.factory.__doc__).partition("\n\n")
    rule = more.split("\nArgs:")[0].strip("\n")
    title = (method.title or name) + (f" ({method.year})" if method.year else "")
    parts = [f"### {title}", f"`{name}`: {' '.join(summary.partition(': ')[2].split())}"]
    # The rule is the indented part of the docstring; sentences around it are kept.
    for block in rule.split("\n\n") if rule else ():
        indented = all(line.startswith("    ") for line in block.splitlines() if line)
        lines = textwrap.dedent(block).strip("\n")
        parts.append(f"```\n{lines}\n```" if indented else " ".join(block.split()))
    parts.append(" ".join(described.split()))
    if references:
        papers = textwrap.dedent(references).strip()
        parts.append("Reference: " + " ".join(papers.split()))
    if len(method.tags) > 1:
        parts.append(f"Also: {', '.join(method.tags[1:])}.")
    return "\n\n".join(part for part in parts if part)


def page() -> str:
    """Returns the page of all methods, by the first tag of each."""
    out = [
        "# The methods by idea",
        "`python experiments/methods.py --page=docs/methods.md` writes this page from the "
        "docstrings of the methods. Down and Up are a client's messages in a round; (`sum`) and "
        "(`each`) say whether the server needs the sum of the uploads only, or each one.",
    ]
    for tag in TAGS:
        names = [name for name, method in ALGORITHMS.items() if method.tags[:1] == (tag,)]
        if names:
            out.append(f"## {tag[0].upper()}{tag[1:]}")
            out += [entry(name) for name in names]
    return "\n\n".join(out) + "\n"


def main():
    if _PAGE.value is not None:
        pathlib.Path(_PAGE.value).write_text(page())
    if _WRITE.value is None and _PAGE.value is not None:
        return
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
