"""The server of most methods: a model moved by the mean change of its clients.

Let `Delta` be the weighted mean of `theta_k - w` over the cohort. The server uses `-Delta` as a
gradient for any optax optimizer (FedOpt). With plain SGD and learning rate 1 this is the weighted
average of the clients' models (FedAvg). Running statistics are not trainable, and are averaged
whatever the optimizer; see `of_trainable`.

References:
  McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep
  Networks from Decentralized Data", 2017, https://arxiv.org/abs/1602.05629.
  Reddi et al., "Adaptive Federated Optimization", 2021, https://arxiv.org/abs/2003.00295.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax.core import tree
from pfljax.core.params import join_params, replace_params, split_params
from pfljax.core.types import Params, Path, PyTree, Task
from pfljax.core.uploads import Weighted, mean, weighted

# The weighted average of the clients' models, as in FedAvg.
PLAIN = optax.sgd(1.0)


class ServerState(NamedTuple):
    """Server state: a model, or the shared part of one.

    Attributes:
      params: The params of the model or its part.
      optimizer_state: The state of the server optimizer.
    """

    params: Params
    optimizer_state: PyTree


def of_trainable(
    optimizer: optax.GradientTransformation, task: Task, at: Path = ()
) -> optax.GradientTransformation:
    """Returns a server optimizer for trainable arrays; statistics move by their mean change.

    A running variance is a mean over clients, which learning rates, momentum or second moments must
    not overshoot: it could become negative. The function is idempotent.

    Args:
      optimizer: The server optimizer, which is applied to the trainable arrays.
      task: The task, which identifies the running statistics of its model.
      at: The path of the task's model in the server's params.
    """
    if task.observe is None:
        return optimizer

    def is_statistic(path):
        return path[: len(at)] == at and task.is_statistic(path[len(at) :])

    def init(params):
        return optimizer.init(split_params(params, is_statistic)[1])

    def update(gradient, state, params):
        statistics, slope = split_params(gradient, is_statistic)
        _, parameters = split_params(params, is_statistic)
        updates, state = optimizer.update(slope, state, parameters)
        return join_params(updates, tree.scale(-1.0, statistics)), state

    return optax.GradientTransformation(init, update)


def scale_trainable(factor: jax.Array, change: Params, task: Task) -> Params:
    """Returns a change of a model with its trainable arrays multiplied by a factor.

    Running statistics are averaged by every method, and keep their change.

    Args:
      factor: `[]`, the factor.
      change: The change of the task's model.
      task: The task, which identifies the running statistics of its model.
    """
    statistics, _ = split_params(change, task.is_statistic)
    scaled = jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, change)
    return replace_params(scaled, statistics)


def init(params: Params, optimizer: optax.GradientTransformation) -> ServerState:
    """Returns the server state before the first round."""
    return ServerState(params, optimizer.init(params))


def apply(
    server: ServerState, total: Weighted, optimizer: optax.GradientTransformation
) -> ServerState:
    """Moves the server's model by the mean change of the cohort.

    Args:
      server: The state before the update.
      total: The cohort's sum of `weighted(theta_k - w, weight_k)`.
      optimizer: The server optimizer.
    """
    gradient = tree.scale(-1.0, mean(total))
    updates, optimizer_state = optimizer.update(gradient, server.optimizer_state, server.params)
    return ServerState(optax.apply_updates(server.params, updates), optimizer_state)


def init_stacked(models: Params, optimizer: optax.GradientTransformation) -> ServerState:
    """Returns the state of several models, leaves `[K, ...]`, each with an optimizer's state."""
    return jax.vmap(lambda params: init(params, optimizer))(models)


def apply_stacked(
    server: ServerState, total: Weighted, optimizer: optax.GradientTransformation
) -> ServerState:
    """Moves each of several models by the mean change of the clients that trained it.

    A model that no client trained keeps its params and the state of its optimizer.

    Args:
      server: The state of the models, leaves `[K, ...]`.
      total: The cohort's sum of the changes, leaves `[K, ...]`, and of their weights, `[K]`.
      optimizer: The server optimizer, for each model.
    """

    def one_model(server, total):
        return tree.where(total.weight > 0, apply(server, total, optimizer), server)

    return jax.vmap(one_model)(server, total)


def weighted_for_each(change: PyTree, weights: jax.Array) -> Weighted:
    """Returns a client's term of `apply_stacked`: one change, with a weight for each model.

    Args:
      change: Arrays of floats.
      weights: `[K]`.
    """
    weights = jnp.asarray(weights, tree.dtype(change))
    value = jax.tree.map(lambda leaf: jnp.multiply.outer(weights.astype(leaf.dtype), leaf), change)
    return Weighted(value, weights)


def weighted_stacked(changes: PyTree, weights: jax.Array) -> Weighted:
    """Returns a client's term of `apply_stacked`: changes `[K, ...]` and their weights `[K]`."""
    return jax.vmap(weighted)(changes, weights)
