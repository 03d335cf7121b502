"""SCAFFOLD: control variates correct the drift of the clients' steps.

Server: the model `w` and the control variate `c`, the mean of the clients'. Client: its control
variate `c_k`, an estimate of its own gradient.
Down: `w, c`. Up: `theta_k - w` (uniform weights) and the change of `c_k` (`sum`).
Cost per client and round: one local training; twice FedAvg's messages.

References:
  Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for
  Federated Learning", 2020, https://arxiv.org/abs/1910.06378 (algorithm 1, option II).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging


class ScaffoldServer(NamedTuple):
    """Attributes:
    average: the model `w` and its optimizer's state.
    control: the control variate `c`, of the model's shape.
    """

    average: averaging.ServerState
    control: core.Params


def sum_of_gradients() -> optax.GradientTransformation:
    """Passes gradients on unchanged; its state is their sum."""
    return optax.GradientTransformation(
        init=tree.zeros_like,
        update=lambda gradient, total, params=None: (gradient, tree.add(total, gradient)),
    )


@checked
def scaffold(
    task: core.Task,
    local: core.LocalTraining,
    *,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Stochastic controlled averaging.

        local steps from w:  theta <- theta - eta (g + c - c_k),  g a gradient of L_k
        c_k' = the mean of the g's;   w <- w + server_optimizer(-mean_k (theta_k - w))
        c <- c + (1/N) sum_k (c_k' - c_k);   c_k <- c_k'

    Args:
      task: The model and its loss.
      local: The clients' local training; the paper's analysis is for plain SGD.
      server_optimizer: As in FedAvg; SGD's learning rate is the paper's global step size.

    Returns:
      The method; a client's state is its control variate.

    Notes:
      Option II writes c_k' = c_k - c + (w - theta_k) / (K eta). For SGD with a constant rate,
      this is the mean of the K gradients g, which is computed here and applies to every optimizer
      and schedule. A client without a step keeps its control variate. Running statistics
      have no gradient, so their control variates remain zero; they are averaged.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task)

    def init_server(population, key):
        average = averaging.init(task.init(key), server_optimizer)
        return ScaffoldServer(average, tree.zeros_like(average.params))

    def init_client(server, profile, key):
        return tree.zeros_like(server.control)

    def client_update(server, client, data, context):
        correction = tree.subtract(server.control, client)
        optimizer = optax.chain(
            sum_of_gradients(),
            optax.stateless(lambda gradient, params: tree.add(gradient, correction)),
            local.optimizer,
        )
        start = server.average.params
        trained = core.train(task.loss, start, data, context, local, optimizer=optimizer)
        steps = core.steps_per_round(data.size, local)
        mean_gradient = tree.divide(trained.optimizer_state[0], jnp.maximum(steps, 1))
        control = tree.where(steps > 0, mean_gradient, client)
        return core.ClientOutput(
            state=control,
            sum=(
                core.weighted(tree.subtract(trained.params, start), 1.0),
                tree.subtract(control, client),
            ),
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        change, control_change = uploads.total
        average = averaging.apply(server.average, change, server_optimizer)
        control = tree.add(server.control, tree.divide(control_change, cohort.num_clients))
        return ScaffoldServer(average, control)

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: server.average.params,
        global_params=lambda server: server.average.params,
    )
