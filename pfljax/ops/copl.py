"""CoPL: rewards of users by their embeddings in the signed graph of users and answers.

CoPL is trained centrally, in three stages:

    graph: embeddings of users and answers by a graph network on all training pairs, full batches
    rewards: linear experts of an answer's features, gated by the user's embedding; one expert for
        each user, as in the paper, or a mixture of all
    new users: the embedding of a new user is a weighted mean of those of known users

It is no method of `pfljax.algorithms`: each gradient step of the first stage exchanges messages
between all users and all answers several times, once for each layer, where a round has one
exchange. Each stage keeps the step with the best accuracy on validation pairs, of all learning
rates.

References:
  Choi, Lim, Kim, "CoPL: Collaborative Preference Learning for Personalizing LLMs", 2025,
  https://arxiv.org/abs/2503.01658.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pfljax.core.types import Params
from pfljax.ops import preference, preference_graph
from pfljax.ops.minimize import minimize


class Pairs(NamedTuple):
    """Pairs of some users.

    Attributes:
      user: `[n]` int32, the client.
      items: `[n, 2]` int32, indices of the preferred answer and the other one.
    """

    user: np.ndarray
    items: np.ndarray

    def of(self, known: np.ndarray) -> Pairs:
        """Returns the pairs where `known` `[n]` is True."""
        return Pairs(self.user[known], self.items[known])


class Settings(NamedTuple):
    """Settings of the training.

    Attributes:
      size: Dimensions of an embedding.
      layers: Number of layers of the graph network.
      dropout: Probability of an edge to be left out of a step.
      decay: Weight of the mean square of all embeddings in the loss.
      experts: Number of experts.
      gate_temperature: Temperature of the gate.
      temperature: Temperature of the weights of known users for a new one.
      steps: Number of steps of each stage.
      every: Number of steps between two evaluations on validation pairs.
    """

    size: int = 32
    layers: int = 2
    dropout: float = 0.5
    decay: float = 0.001
    experts: int = 8
    gate_temperature: float = 1.0
    temperature: float = 0.07
    steps: int = 200
    every: int = 20


def accuracy(margins: jax.Array) -> jax.Array:
    """Returns the fraction of positive margins, zero counting half."""
    return jnp.mean(preference.wins(margins))


def descend(
    loss: Callable[[Params, jax.Array], jax.Array],
    score: Callable[[Params], jax.Array],
    params: Params,
    rate: float,
    settings: Settings,
) -> tuple[Params, float]:
    """Returns the params with the best score along Adam's steps, and that score.

    Args:
      loss: `(params, key) -> []`.
      score: `params -> []`, on validation pairs.
      params: The initial params.
      rate: Learning rate.
      settings: The number of steps, and of those between two scores.
    """
    optimizer = optax.adam(rate)

    @jax.jit
    def some_steps(params, state, keys):
        params, state = minimize(loss, params, optimizer, state, keys)
        return params, state, score(params)

    best, best_score, state = params, -np.inf, optimizer.init(params)
    keys = jax.random.split(jax.random.key(1), settings.steps)
    for begin in range(0, settings.steps, settings.every):
        params, state, found = some_steps(params, state, keys[begin : begin + settings.every])
        if found > best_score:
            best, best_score = params, float(found)
    return best, best_score


def best_of(
    rates: Sequence[float], train: Callable[[float], tuple[Params, float]]
) -> tuple[Params, float, float]:
    """Returns params, validation score and learning rate of the best of several learning rates."""
    found = [(*train(rate), rate) for rate in rates]
    return max(found, key=lambda each: each[1])


def affinities(encoded: tuple[jax.Array, jax.Array], of: Pairs) -> jax.Array:
    """Returns `[n]`, the affinity of the user to the preferred answer minus to the other one.

    Args:
      encoded: Embeddings of users `[U, d]` and of answers `[I, d]`.
      of: The pairs.
    """
    users, items = encoded
    return jnp.sum(users[of.user] * (items[of.items[:, 0]] - items[of.items[:, 1]]), axis=1)


def train_graph(
    train: Pairs,
    validation: Pairs,
    num_users: int,
    num_items: int,
    rate: float,
    settings: Settings,
) -> tuple[tuple[jax.Array, jax.Array], float]:
    """Returns the embeddings of users and answers after the first stage, and its score."""
    graph = preference_graph.graph_of(*train)
    first = preference_graph.init(
        jax.random.key(0), num_users, num_items, settings.size, settings.layers
    )

    def loss(params, key):
        shape = (2, len(train.user))
        kept = jax.random.bernoulli(key, 1 - settings.dropout, shape) / (1 - settings.dropout)
        encoded = preference_graph.encode(params, graph, tuple(kept))
        squares = sum(jnp.mean(params[name] ** 2) for name in ("user", "item"))
        fit = jnp.mean(preference.bradley_terry(affinities(encoded, train)))
        return fit + settings.decay * squares

    def score(params):
        return accuracy(affinities(preference_graph.encode(params, graph), validation))

    params, found = descend(loss, score, first, rate, settings)
    return jax.jit(preference_graph.encode)(params, graph), found


def reward_margins(
    rewards: Params,
    embeddings: jax.Array,
    features: jax.Array,
    of: Pairs,
    settings: Settings,
    top: int,
) -> jax.Array:
    """Returns `[n]`, the rewards of the preferred answers minus those of the others.

    Args:
      rewards: The params of the gated rewards.
      embeddings: `[U, d]`, standardized embeddings of users.
      features: `[I, width]`, features of answers.
      of: The pairs.
      settings: The temperature of the gate.
      top: Number of experts that count for a user.
    """
    weights = preference_graph.reward_weights(rewards, embeddings, settings.gate_temperature, top)
    gaps = jnp.asarray(features)[of.items[:, 0]] - jnp.asarray(features)[of.items[:, 1]]
    return jnp.sum(weights[of.user] * gaps, axis=1)


def train_rewards(
    train: Pairs,
    validation: Pairs,
    embeddings: jax.Array,
    features: np.ndarray,
    rate: float,
    settings: Settings,
    top: int,
) -> tuple[Params, float]:
    """Returns the params of the gated rewards after the second stage, and their score."""
    first = preference_graph.init_rewards(
        jax.random.key(2), embeddings.shape[1], features.shape[1], settings.experts, 32
    )
    margins_of = functools.partial(
        reward_margins, embeddings=embeddings, features=features, settings=settings, top=top
    )

    def loss(params, key):
        return jnp.mean(preference.bradley_terry(margins_of(params, of=train)))

    def score(params):
        return accuracy(margins_of(params, of=validation))

    return descend(loss, score, first, rate, settings)


def new_users(
    encoded: tuple[jax.Array, jax.Array],
    known: Pairs,
    new: Pairs,
    num_new: int,
    temperature: float,
) -> jax.Array:
    """Returns `[num_new, d]`, the embeddings of new users by those of known ones.

    Args:
      encoded: Embeddings of known users and of answers.
      known: The training pairs of known users, which make them neighbours.
      new: The pairs of new users, who are numbered from 0.
      num_new: Number of new users.
      temperature: Temperature of the weights.
    """
    users, items = encoded
    longest = int(np.bincount(new.user, minlength=num_new).max(initial=1))
    padded = np.full((num_new, longest, 2), -1, np.int32)
    order = np.argsort(new.user, kind="stable")
    sizes = np.bincount(new.user, minlength=num_new)
    column = np.concatenate([np.arange(size) for size in sizes])
    padded[new.user[order], column] = new.items[order]
    has = np.zeros((len(items), len(users)), bool)
    for side in (0, 1):
        has[known.items[:, side], known.user] = True
    has = jnp.asarray(has)

    def one(pairs):
        is_neighbour = jnp.any(has[jnp.maximum(pairs, 0)] & (pairs >= 0)[..., None], axis=(0, 1))
        weights = preference_graph.neighbour_weights(users, items, pairs, is_neighbour, temperature)
        return weights @ users

    return jax.lax.map(jax.jit(one), jnp.asarray(padded))


class Model(NamedTuple):
    """What CoPL has learned.

    Attributes:
      users: `[U, d]`, embeddings of the known users.
      items: `[I, d]`, embeddings of the answers.
      rewards: The params of the gated rewards, by the name of the gate.
      rates: The learning rate that was chosen, by the name of the stage or gate.
    """

    users: jax.Array
    items: jax.Array
    rewards: dict[str, Params]
    rates: dict[str, float]

    def standardized(self, users: jax.Array) -> jax.Array:
        """Returns embeddings of users `[..., d]` as the gate reads them."""
        center, spread = jnp.mean(self.users, axis=0), jnp.std(self.users) + 1e-12
        return (users - center) / spread


def gates(settings: Settings) -> dict[str, int]:
    """Returns the number of experts that count for a user, by the name of the gate."""
    return {"one expert": 1, "all experts": settings.experts}


def fit(
    train: Pairs,
    validation: Pairs,
    num_users: int,
    features: np.ndarray,
    rates: Sequence[float],
    settings: Settings,
) -> Model:
    """Returns the result of the first two stages.

    Args:
      train: The training pairs.
      validation: The validation pairs, one or more.
      num_users: `U`.
      features: `[I, width]`, standardized features of all answers.
      rates: The learning rates that are tried in each stage.
      settings: The settings.
    """
    (users, items), _, graph_rate = best_of(
        rates,
        lambda rate: train_graph(train, validation, num_users, len(features), rate, settings),
    )
    model = Model(users, items, {}, {"graph": graph_rate})
    standard = model.standardized(users)
    for name, top in gates(settings).items():
        model.rewards[name], _, model.rates[name] = best_of(
            rates,
            lambda rate, top=top: train_rewards(
                train, validation, standard, features, rate, settings, top
            ),
        )
    return model


def margins(
    model: Model, users: jax.Array, features: np.ndarray, of: Pairs, settings: Settings
) -> dict[str, jax.Array]:
    """Returns `[n]`, preferred answer minus the other one: 'graph' affinities, and each reward.

    Args:
      model: The result of `fit`.
      users: `[U', d]`, the embeddings to which the users of the pairs refer: `model.users`, or the
        result of `new_users`.
      features: As in `fit`.
      of: The pairs.
      settings: The settings.
    """
    found = {"graph": affinities((users, model.items), of)}
    for name, top in gates(settings).items():
        found[name] = reward_margins(
            model.rewards[name], model.standardized(users), features, of, settings, top
        )
    return found
