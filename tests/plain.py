"""The network `mlp_bn` written out by hand, and plain loops over batches and clients in float64.

Nothing here comes from pfljax but the arrays that a run starts from, so that the tests compare
methods with the formulas of their papers. A model is a nested dict, as `federation.task("mlp_bn")`
makes it; the loops see the real examples of one client, without padding or masks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import federation
import jax
import jax.numpy as jnp
import numpy as np

Model = dict[str, Any]
Objective = Callable[..., jax.Array]  # (model, x, y) -> []

RATE, BATCH, EPOCHS = 0.1, 4, 2  # as in `federation.local_training`
MOMENTUM, EPSILON = 0.1, 1e-5  # of batch normalization
NORM = "BatchNorm_0"


def features(model: Model, x: jax.Array, train: bool) -> jax.Array:
    """Dense layer, batch normalization by the batch or by the running statistics, ReLU."""
    norm = model["body"][NORM]
    z = before_norm(model, x)
    mean, var = (jnp.mean(z, axis=0), jnp.var(z, axis=0)) if train else (norm["mean"], norm["var"])
    z = (z - mean) / jnp.sqrt(var + EPSILON) * norm["scale"] + norm["bias"]
    return jax.nn.relu(z)  # of slope 0 at 0, where a single example is normalized to


def before_norm(model: Model, x: jax.Array) -> jax.Array:
    return x @ model["body"]["Dense_0"]["kernel"] + model["body"]["Dense_0"]["bias"]


def head(model: Model, z: jax.Array) -> jax.Array:
    return z @ model["head"]["kernel"] + model["head"]["bias"]


def logits(model: Model, x: jax.Array, train: bool) -> jax.Array:
    return head(model, features(model, x, train))


def entropies(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """The cross-entropy of each example."""
    return -jax.nn.log_softmax(outputs)[jnp.arange(len(y)), y]


def losses(model: Model, x: jax.Array, y: jax.Array, train: bool = True) -> jax.Array:
    return entropies(logits(model, x, train), y)


def loss(model: Model, x: jax.Array, y: jax.Array, train: bool = True) -> jax.Array:
    return jnp.mean(losses(model, x, y, train))


def statistics(model: Model) -> Model:
    """The running statistics of a model."""
    return {name: model["body"][NORM][name] for name in ("mean", "var")}


def with_statistics(model: Model, values: Model) -> Model:
    norm = {**model["body"][NORM], **values}
    return {**model, "body": {**model["body"], NORM: norm}}


def parameters(model: Model) -> Model:
    """The model without its running statistics."""
    norm = {name: model["body"][NORM][name] for name in ("scale", "bias")}
    return {**model, "body": {**model["body"], NORM: norm}}


def observed(model: Model, x: jax.Array) -> Model:
    """The running statistics that a step on these examples leaves, as PyTorch has them."""
    z, old = before_norm(model, x), statistics(model)
    var = jnp.var(z, axis=0, ddof=1) if len(x) > 1 else None
    return {
        "mean": (1 - MOMENTUM) * old["mean"] + MOMENTUM * jnp.mean(z, axis=0),
        "var": old["var"] if var is None else (1 - MOMENTUM) * old["var"] + MOMENTUM * var,
    }


def batches(x: jax.Array, y: jax.Array, size: int = BATCH) -> Iterator[tuple[jax.Array, jax.Array]]:
    """One epoch in stored order."""
    for start in range(0, len(x), size):
        yield x[start : start + size], y[start : start + size]


def axpy(a: float, x: Any, y: Any) -> Any:
    """`a x + y`."""
    return jax.tree.map(lambda u, v: a * u + v, x, y)


def combine(weights: Sequence[float], models: Sequence[Any]) -> Any:
    """The sum of models times weights."""
    return jax.tree.map(lambda *rows: sum(w * r for w, r in zip(weights, rows)), *models)  # noqa: B905


def average(models: Sequence[Any], weights: Sequence[float]) -> Any:
    return combine(np.asarray(weights) / np.sum(weights), models)


@functools.cache
def gradient(objective: Objective) -> Callable[..., Any]:
    """The compiled gradient of an objective, or of one with further arguments."""
    return jax.jit(jax.grad(objective))


@functools.partial(jax.jit, static_argnames="part")
def step(model: Model, slope: Model, x: jax.Array, part: str = "all", rate: float = RATE) -> Model:
    """A step of SGD on all of a model, or on its 'body', with the statistics, or its 'head'."""
    moved = with_statistics(axpy(-rate, slope, model), observed(model, x))
    if part != "all":
        moved = {**model, part: moved[part]}
    return moved


def train(
    model: Model,
    x: jax.Array,
    y: jax.Array,
    objective: Objective = loss,
    *arguments: Any,
    epochs: int = EPOCHS,
    part: str = "all",
) -> Model:
    """Local training of one client on `objective(model, x, y, *arguments)`."""
    for _ in range(epochs):
        for u, v in batches(x, y):
            model = step(model, gradient(objective)(model, u, v, *arguments), u, part)
    return jax.tree.map(np.asarray, model)


def pulled(model: Model, x: jax.Array, y: jax.Array, anchor: Model, strength: float) -> jax.Array:
    """The loss and a proximal term."""
    gaps = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), model, anchor)
    return loss(model, x, y) + 0.5 * strength * sum(jax.tree.leaves(gaps))


@functools.cache
def examples(client: int) -> tuple[np.ndarray, np.ndarray]:
    """The training examples of a client of the tiny federation, in float64."""
    whole = federation.examples()
    rows = slice(int(whole.offsets["train"][client]), None)
    size = int(whole.sizes["train"][client])
    return whole.inputs[rows][:size].astype(np.float64), whole.targets[rows][:size]


def sizes(ids: Sequence[int]) -> list[int]:
    return [len(examples(k)[0]) for k in ids]


def classes(y: jax.Array) -> jax.Array:
    """`[C]`, how many examples a class has."""
    return np.bincount(y, minlength=federation.NUM_CLASSES)


def class_sums(z: jax.Array, y: jax.Array) -> jax.Array:
    """`[C, d]`, the features of each class, added up."""
    z = np.asarray(z)
    return np.stack([z[y == c].sum(axis=0) for c in range(federation.NUM_CLASSES)])
