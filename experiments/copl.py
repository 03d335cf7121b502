"""CoPL: rewards of users by their embeddings in the signed graph of users and answers.

    python experiments/copl.py --config=configs/preferences.py:simulated

The config's data set has the task preference; the splits and the held-out users are those of
compare.py with the same config, so that its figures stand beside this table. An answer is
recognized by its features. CoPL is trained centrally, in three stages:

    graph: embeddings of users and answers by a graph network on all training pairs, full batches
    rewards: linear experts of an answer's features, gated by the user's embedding; one expert for
        each user, as in the paper, or a mixture of all
    new users: the embedding of a held-out user is a weighted mean of those of known users

It is no method of compare.py: each gradient step of the first stage exchanges messages between all
users and all answers several times, once for each layer, where a round has one exchange. Each stage
keeps the step with the best validation accuracy, of all learning rates (`--rates`); test pairs are
scored once. Prints a table in Markdown: mean ± standard deviation over the seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from pfljax.cli import app
from pfljax.data import FederatedDataset, Split
from pfljax.errors import UserError
from pfljax.ops import preference, preference_graph
from pfljax.ops.minimize import minimize
from pfljax.report import tables
from pfljax.training.study import config_runs, experiment

Params = Any


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


def pairs_of(dataset: FederatedDataset) -> tuple[dict[str, Pairs], np.ndarray]:
    """Returns the pairs of each split, and the standardized features `[I, d]` of all answers."""
    flat = dataset.inputs.reshape(-1, dataset.inputs.shape[-1])
    features, index = np.unique(flat, axis=0, return_inverse=True)
    items = index.reshape(-1, 2).astype(np.int32)

    def of_split(split: Split) -> Pairs:
        user = np.repeat(np.arange(dataset.num_clients, dtype=np.int32), split.sizes)
        spans = zip(split.offsets, split.sizes, strict=True)
        rows = [np.arange(offset, offset + size) for offset, size in spans]
        return Pairs(user, items[np.concatenate(rows)])

    names = ("train", "validation", "test")
    found = {name: of_split(getattr(dataset, name)) for name in names}
    return found, ((features - dataset.mean) / dataset.std).astype(np.float32)


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
    rates: list[float], train: Callable[[float], tuple[Params, float]]
) -> tuple[Params, float, float]:
    """Returns params, validation score and learning rate of the best of several learning rates."""
    found = [(*train(rate), rate) for rate in rates]
    return max(found, key=lambda each: each[1])


def train_graph(
    pairs: dict[str, Pairs], num_users: int, num_items: int, rate: float, settings: Settings
) -> tuple[tuple[jax.Array, jax.Array], float]:
    """Returns the embeddings of users and answers after the first stage, and its score."""
    train, validation = pairs["train"], pairs["validation"]
    graph = preference_graph.graph_of(*train)
    first = preference_graph.init(
        jax.random.key(0), num_users, num_items, settings.size, settings.layers
    )

    def margins(encoded, of):
        user, item = encoded
        return jnp.sum(user[of.user] * (item[of.items[:, 0]] - item[of.items[:, 1]]), axis=1)

    def loss(params, key):
        shape = (2, len(train.user))
        kept = jax.random.bernoulli(key, 1 - settings.dropout, shape) / (1 - settings.dropout)
        encoded = preference_graph.encode(params, graph, tuple(kept))
        squares = sum(jnp.mean(params[name] ** 2) for name in ("user", "item"))
        fit = jnp.mean(preference.bradley_terry(margins(encoded, train)))
        return fit + settings.decay * squares

    def score(params):
        return accuracy(margins(preference_graph.encode(params, graph), validation))

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
    pairs: dict[str, Pairs],
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
    margins = functools.partial(
        reward_margins, embeddings=embeddings, features=features, settings=settings, top=top
    )

    def loss(params, key):
        return jnp.mean(preference.bradley_terry(margins(params, of=pairs["train"])))

    def score(params):
        return accuracy(margins(params, of=pairs["validation"]))

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


def evaluate(
    dataset: FederatedDataset, rates: list[float], settings: Settings
) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """Trains all stages and scores test pairs.

    Args:
      dataset: The pairs of all users.
      rates: The learning rates of each stage, of which the best on validation pairs is used.
      settings: The settings of the training.

    Returns:
      `{row: (accuracy of users that take part, of held-out ones)}`, NaN without held-out users, and
      the learning rate of each stage.

    Raises:
      UserError: There are no validation pairs.
    """
    pairs, features = pairs_of(dataset)
    count = dataset.num_participants
    seen = {name: of.of(of.user < count) for name, of in pairs.items()}
    new = {name: of.of(of.user >= count) for name, of in pairs.items()}
    new = {name: Pairs(of.user - count, of.items) for name, of in new.items()}
    if not len(seen["validation"].user):
        raise UserError(
            "CoPL is selected on validation pairs; set config.data.validation_fraction."
        )
    encoded, _, graph_rate = best_of(
        rates, lambda rate: train_graph(seen, count, len(features), rate, settings)
    )
    users = encoded[0]
    center, spread = jnp.mean(users, axis=0), jnp.std(users) + 1e-12
    standard = (users - center) / spread
    gated = {"one expert": 1, "all experts": settings.experts}
    rewards = {
        name: best_of(
            rates,
            lambda rate, top=top: train_rewards(seen, standard, features, rate, settings, top),
        )
        for name, top in gated.items()
    }
    chosen = {"graph": graph_rate, **{name: rate for name, (_, _, rate) in rewards.items()}}
    groups = {"seen": (users, seen["test"])}
    if len(new["test"].user):
        mixed = new_users(
            encoded, seen["train"], new["train"], dataset.num_unseen, settings.temperature
        )
        groups["unseen"] = mixed, new["test"]
    found: dict[str, dict[str, float]] = {}
    for group, (embeddings, test) in groups.items():
        gaps = encoded[1][test.items[:, 0]] - encoded[1][test.items[:, 1]]
        affinity = jnp.sum(embeddings[test.user] * gaps, axis=1)
        found.setdefault("CoPL, graph", {})[group] = float(accuracy(affinity))
        for name, top in gated.items():
            margins = reward_margins(
                rewards[name][0], (embeddings - center) / spread, features, test, settings, top
            )
            found.setdefault(f"CoPL, {name}", {})[group] = float(accuracy(margins))
    rows = {name: (of["seen"], of.get("unseen", np.nan)) for name, of in found.items()}
    return rows, chosen


def define_flags() -> None:
    """Defines the flags of this script."""
    app.define_config()
    flags.DEFINE_list("rates", ["0.001", "0.003", "0.01", "0.03", "0.1"], "The learning rates.")
    for name, value in Settings()._asdict().items():
        define = flags.DEFINE_float if isinstance(value, float) else flags.DEFINE_integer
        define(name, value, f"The setting {name}, see Settings.")


def main() -> None:
    """Runs the script."""
    config, given = app.config(), flags.FLAGS
    settings = Settings(**{name: given[name].value for name in Settings._fields})
    try:
        rates = [float(rate) for rate in given.rates]
    except ValueError as error:
        raise UserError(f"--rates={','.join(given.rates)} are no numbers ({error}).") from error
    of_seeds: dict[str, list[tuple[float, float]]] = {}
    for seed in config.seeds:
        own = config_runs.of_run(config, config.algorithms[0], seed)
        dataset = experiment.build_dataset(own)
        if dataset.task != "preference":
            raise UserError(
                f"{dataset.name} has the task {dataset.task}; copl.py is for the task preference."
            )
        found, chosen = evaluate(dataset, rates, settings)
        shown = ", ".join(f"{name} {rate:g}" for name, rate in chosen.items())
        app.say(f"Learning rates with seed {seed}: {shown}")
        for name, values in found.items():
            of_seeds.setdefault(name, []).append(values)
    lines = ["| method | personalized (%) | unseen (%) |", "|---|---:|---:|"]
    for name, values in of_seeds.items():
        cells = [tables.percent_over_seeds(column, 2) for column in zip(*values, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    print("\n".join(lines))


if __name__ == "__main__":
    app.run(main, define_flags)
