"""A network that generates the params of a model, and the gradients with respect to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pfljax.core import tree
from pfljax.core.types import Params

# {'hidden': [{'kernel', 'bias'}, ...], 'heads': {'kernel': tree, 'bias': tree}}, and with a linear
# layer before the heads, 'linear': {'kernel', 'bias'}.
Hypernetwork = Any


def init(
    key: jax.Array,
    params: Params,
    size: int,
    hidden: int,
    layers: int,
    spread: float,
    linear: bool = False,
) -> Hypernetwork:
    """Returns a hypernetwork that generates models near `params`.

    The biases of the heads are `params`; their kernels add `spread` times each array's root mean
    square.

    Args:
      key: Typed PRNG key.
      params: The params near which models are generated; each array gets a linear head.
      size: The dimension of an embedding, whose entries have mean square 1.
      hidden: The width of the hidden layers.
      layers: The number of hidden layers, each followed by a ReLU.
      spread: The relative spread of the generated models.
      linear: Whether there is another layer without ReLU between the hidden layers and the heads.
    """
    dtype = tree.dtype(params)
    hidden_key, heads_key = jax.random.split(key)

    def layer(number, gain):
        # He's scale preserves the mean square of the embedding, which is 1.
        draw = jax.random.normal(jax.random.fold_in(hidden_key, number), (width, hidden), dtype)
        return {"kernel": draw * (gain / width) ** 0.5, "bias": jnp.zeros(hidden, dtype)}

    network, width = {"hidden": []}, size
    for number in range(layers):
        network["hidden"].append(layer(number, 2))
        width = hidden
    if linear:
        network["linear"] = layer(layers, 1)
        width = hidden
    leaves, structure = jax.tree.flatten(params)
    kernels = [
        spread
        * jnp.sqrt(jnp.mean(leaf**2) / width)
        * jax.random.normal(jax.random.fold_in(heads_key, number), (width, *leaf.shape), dtype)
        for number, leaf in enumerate(leaves)
    ]
    network["heads"] = {"kernel": jax.tree.unflatten(structure, kernels), "bias": params}
    return network


def generate(network: Hypernetwork, embedding: jax.Array) -> Params:
    """Returns the model of an embedding `[d]`, or the models of `[K, d]`, leaves `[K, ...]`."""
    features = embedding
    for layer in network["hidden"]:
        features = jax.nn.relu(features @ layer["kernel"] + layer["bias"])
    if "linear" in network:
        features = features @ network["linear"]["kernel"] + network["linear"]["bias"]
    return jax.tree.map(
        lambda kernel, bias: jnp.tensordot(features, kernel, 1) + bias,
        network["heads"]["kernel"],
        network["heads"]["bias"],
    )


def pull_back(
    network: Hypernetwork,
    embedding: jax.Array,
    change: Params,
    generate: Callable[[Hypernetwork, jax.Array], Params] = generate,
) -> tuple[Hypernetwork, jax.Array]:
    """Returns the gradients of `-sum <h(v), change>`; descent moves `h(v)` along `change`.

    Args:
      network: The network `h`, a pytree of arrays.
      embedding: The embedding `v`, or stacked embeddings.
      change: The change of what the embedding generates, or stacked changes.
      generate: `(network, embedding) -> h(v)`.
    """

    def disagreement(network, embedding):
        products = jax.tree.map(jnp.vdot, generate(network, embedding), change)
        return -sum(jax.tree.leaves(products))

    return jax.grad(disagreement, argnums=(0, 1))(network, embedding)
