"""The signed graph of users and answers, and rewards selected by embeddings of users (CoPL).

A user has a positive edge to each answer that the user preferred, and a negative one to each
rejected answer. Shapes in the docstrings: `U` users, `I` answers (items), `E` edges of one sign,
`d` dimensions of an embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.core.types import Params
from pfljax.ops import linear

_SLOPE = 0.2  # of LeakyReLU below zero, as in the authors' code


class Edges(NamedTuple):
    """The edges of one sign, each with the symmetric normalization `1 / sqrt(deg(u) deg(i))`.

    Attributes:
      user: `[E]` int32.
      item: `[E]` int32.
      weight: `[E]`.
    """

    user: jax.Array
    item: jax.Array
    weight: jax.Array


class Graph(NamedTuple):
    """A signed bipartite graph.

    Attributes:
      positive: The edges to preferred answers.
      negative: The edges to rejected answers.
    """

    positive: Edges
    negative: Edges


def graph_of(user: np.ndarray, pairs: np.ndarray) -> Graph:
    """Returns the graph of some pairs, with parallel edges for equal ones.

    Args:
      user: `[n]` integers, the user of each pair.
      pairs: `[n, 2]` integers, the preferred answer and the rejected one.
    """

    def edges(items):
        degree_of_user, degree_of_item = np.bincount(user), np.bincount(items)
        weight = 1 / np.sqrt(degree_of_user[user] * degree_of_item[items])
        return Edges(user.astype(np.int32), items.astype(np.int32), weight.astype(np.float32))

    return Graph(*(edges(pairs[:, column]) for column in (0, 1)))


def init(key: jax.Array, users: int, items: int, size: int, layers: int) -> Params:
    """Returns the params of the graph network: embeddings and the matrices of each layer.

    Args:
      key: Typed PRNG key.
      users: `U`.
      items: `I`.
      size: `d`.
      layers: Number of layers.
    """
    user_key, item_key, *keys = jax.random.split(key, 2 + layers)
    names = [f"{side}_{part}" for side in ("user", "item") for part in ("own", "plus", "minus")]

    def matrices(key):
        drawn = zip(names, jax.random.split(key, len(names)), strict=True)
        return {name: jax.random.normal(k, (size, size)) / np.sqrt(size) for name, k in drawn}

    return {
        "user": 0.1 * jax.random.normal(user_key, (users, size)),
        "item": 0.1 * jax.random.normal(item_key, (items, size)),
        "layers": [matrices(key) for key in keys],
    }


def encode(
    params: Params, graph: Graph, kept: tuple[jax.Array, jax.Array] | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the embeddings of users `[U, d]` and answers `[I, d]` after all layers.

        m+ = A+ E_i,  m- = A- E_i    (messages to users; to answers, of the transposed matrices)
        E_u <- LeakyReLU(E_u W + (m+ + (m+ * E_u) W+) - (m- + (m- * E_u) W-))

    and in the same step the same for answers, with their own matrices.

    Args:
      params: The result of `init`.
      graph: The edges.
      kept: `[E]` factors of the positive and of the negative edges, such as those of edge dropout;
        None for 1.

    References:
      Choi, Lim, Kim, "CoPL: Collaborative Preference Learning for Personalizing LLMs", 2025,
      https://arxiv.org/abs/2503.01658.
    """
    user, item = params["user"], params["item"]
    factors = (1, 1) if kept is None else kept

    def messages(of_items, to_users):
        found = []
        for edges, factor in zip(graph, factors, strict=True):
            weight = (edges.weight * factor)[:, None]
            source, target = (edges.item, edges.user) if to_users else (edges.user, edges.item)
            count = len(user) if to_users else len(item)
            found.append(jax.ops.segment_sum(weight * of_items[source], target, count))
        return found

    def step(own, plus, minus, layer, side):
        positive = plus + (plus * own) @ layer[f"{side}_plus"]
        negative = minus + (minus * own) @ layer[f"{side}_minus"]
        return jax.nn.leaky_relu(own @ layer[f"{side}_own"] + positive - negative, _SLOPE)

    for layer in params["layers"]:
        to_users, to_items = messages(item, True), messages(user, False)
        user, item = (
            step(user, *to_users, layer, "user"),
            step(item, *to_items, layer, "item"),
        )
    return user, item


def margins(user: jax.Array, item: jax.Array, pairs: jax.Array) -> jax.Array:
    """Returns `[..., n]`, the affinity of users to the first answer of pairs minus to the second.

    Args:
      user: `[..., d]`, embeddings of users.
      item: `[I, d]`, embeddings of answers.
      pairs: `[n, 2]` int32.
    """
    return user @ (item[pairs[:, 0]] - item[pairs[:, 1]]).T


def neighbour_weights(
    users: jax.Array,
    items: jax.Array,
    pairs: jax.Array,
    is_neighbour: jax.Array,
    temperature: float | jax.Array = 0.07,
) -> jax.Array:
    """Returns `[U]`, the weights of known users in the embedding of a new one; they sum to 1.

        softmax over neighbours v of mean_{(i, j) in pairs} log sigmoid(<e_v, e_i - e_j>) / tau

    Without a neighbour, or without pairs, all known users have the same weight.

    Args:
      users: `[U, d]`, embeddings of known users.
      items: `[I, d]`, embeddings of answers.
      pairs: `[n, 2]` int32, the pairs of the new user, preferred answers first; -1 for padding.
      is_neighbour: `[U]` bool, whether a user has an edge to an answer of these pairs.
      temperature: `tau`, above 0; near 0 only the most similar user counts.
    """
    mask = pairs[:, 0] >= 0
    fits = jax.nn.log_sigmoid(margins(users, items, jnp.maximum(pairs, 0)))
    fit = jnp.sum(jnp.where(mask, fits, 0), axis=1) / jnp.maximum(jnp.sum(mask), 1)
    candidates = is_neighbour | ~jnp.any(is_neighbour)
    scores = jnp.where(jnp.any(mask), fit / temperature, 0.0)
    return jax.nn.softmax(jnp.where(candidates, scores, -jnp.inf))


def init_rewards(key: jax.Array, size: int, width: int, experts: int, hidden: int) -> Params:
    """Returns the params of rewards of answers: a common one, experts, and the gate of users.

    Args:
      key: Typed PRNG key.
      size: `d`, dimensions of an embedding of a user.
      width: Number of features of an answer.
      experts: Number of experts.
      hidden: Width of the hidden layer of the gate.
    """
    expert_key, first, second = jax.random.split(key, 3)
    return {
        "common": jnp.zeros(width),
        "experts": 0.1 * jax.random.normal(expert_key, (experts, width)),
        "gate": [
            linear.init(first, size, hidden, jnp.float32),
            linear.init(second, hidden, experts, jnp.float32),
        ],
    }


def reward_weights(
    params: Params, user: jax.Array, temperature: float | jax.Array = 1.0, top: int = 1
) -> jax.Array:
    """Returns `[..., width]`, the weights of an answer's features in the reward of users.

        r_u(x) = <common + sum_{m in top} g_m expert_m, x>,   g = softmax(gate(e_u) / temperature)

    Args:
      params: The result of `init_rewards`.
      user: `[..., d]`, embeddings of users.
      temperature: Temperature of the gate, above 0.
      top: Number of experts with the largest gates that count; their gates are not rescaled.
    """
    first, second = params["gate"]
    hidden = jax.nn.relu(linear.apply(first, user))
    gates = jax.nn.softmax(linear.apply(second, hidden) / temperature)
    least = jnp.sort(gates, axis=-1)[..., -top]
    gates = jnp.where(gates >= least[..., None], gates, 0)
    return params["common"] + gates @ params["experts"]
