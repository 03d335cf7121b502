"""The server that most methods share: a model moved by the mean of its clients' changes.

With `Delta` the weighted mean of `theta_k - w` over the cohort, the server takes
`-Delta` for a gradient and lets any optax optimizer take the step (FedOpt). With plain
SGD and learning rate 1 this is the weighted average of the clients' models (FedAvg).
Running statistics are no parameters, and are averaged whatever the optimizer, see `of_parameters`.

References:
  McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep
  Networks from Decentralized Data", 2017, https://arxiv.org/abs/1602.05629.
  Reddi et al., "Adaptive Federated Optimization", 2021, https://arxiv.org/abs/2003.00295.
"""

from __future__ import annotations

from typing import NamedTuple

import optax

from pfljax.core import tree
from pfljax.core.params import join_params, split_params
from pfljax.core.types import Params, Path, PyTree, Task
from pfljax.core.uploads import Weighted, mean

# The weighted average of the clients' models, as FedAvg takes it.
PLAIN = optax.sgd(1.0)


class ServerState(NamedTuple):
    """Server state: a model, or the part of one that clients share.

    Attributes:
      params: nested dict of arrays.
      optimizer_state: of the server optimizer.
    """

    params: Params
    optimizer_state: PyTree


def of_trainable(
    optimizer: optax.GradientTransformation, task: Task, at: Path = ()
) -> optax.GradientTransformation:
    """Returns a server optimizer that steps parameters only; statistics take their mean change.

    A running variance is a mean over clients, which no learning rate, momentum or second moment may
    move past: it could end below zero. To apply this twice is to apply it once.

    Args:
      optimizer: the server optimizer; the arrays that it sees are the parameters.
      task: says which arrays of its model are running statistics.
      at: the path of the task's model in what the server holds.
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


def init(params: Params, optimizer: optax.GradientTransformation) -> ServerState:
    """Returns the server state before the first round."""
    return ServerState(params, optimizer.init(params))


def apply(
    server: ServerState, total: Weighted, optimizer: optax.GradientTransformation
) -> ServerState:
    """Moves the server's model by the cohort's mean change.

    Args:
      server: the state before.
      total: the cohort's sum of `weighted(theta_k - w, weight_k)`.
      optimizer: the server optimizer.
    """
    gradient = tree.scale(-1.0, mean(total))
    updates, optimizer_state = optimizer.update(gradient, server.optimizer_state, server.params)
    return ServerState(optax.apply_updates(server.params, updates), optimizer_state)
