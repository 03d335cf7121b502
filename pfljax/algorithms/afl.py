"""AFL: one model for the worst mixture of the clients' distributions.

Server: the model `w`, the state of its optimizer, and the mixture weights `lambda` of all clients.
Client: nothing. Down: `w, lambda_k`. Up: `theta_k - w`, weighted by `lambda_k` (`sum`), and the
loss of `w` (`each`, one number).
Cost per client and round: one local training, and a forward pass over all examples.

References:
  Mohri, Sivek, Suresh, "Agnostic Federated Learning", 2019, https://arxiv.org/abs/1902.00146.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, full_batch, simplex, stacked


class AflServer(NamedTuple):
    """Attributes:
    average: the model `w` and its optimizer's state.
    mixture: `[N]`, the weights `lambda` of all clients, which sum to 1.
    """

    average: averaging.ServerState
    mixture: jax.Array


@checked
def afl(
    task: core.Task,
    local: core.LocalTraining,
    *,
    gamma: Annotated[float, core.at_least(0)] = 0.01,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Minimizes the loss of the mixture of clients that maximizes it.

        F_k = mean loss of w on all examples of client k;   theta_k = local training from w on L_k
        Delta = sum_k lambda_k (theta_k - w) / sum_k lambda_k;   w <- w + server_optimizer(-Delta)
        lambda <- projection on the simplex of (lambda + gamma F),   F_k = 0 for absent clients

    Args:
      task: The model and its loss.
      local: The clients' local training; one step of SGD on all examples is the paper's descent.
      gamma: Learning rate of the mixture weights, 0.001 to 0.2; 0 averages uniformly.
      server_optimizer: As in FedAvg.

    Returns:
      The method. All clients deploy the global model.

    Notes:
      In the paper both players take one gradient step; here the model's is a local training, as in
      FedAvg, which reduces to the paper's for one step on all examples. The mixture starts
      uniform. The paper draws a client by `lambda`; here the engine samples the cohort uniformly,
      and `lambda` weights its average. With a cohort of some clients, the weights of absent ones
      fall, as their loss counts as zero; take full participation for the paper's ascent. A cohort
      whose weights are all zero does not move the model. The paper leaves `gamma` to be tuned. The
      loss is in evaluation mode.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task)

    def init_server(population, key):
        average = averaging.init(task.init(key), server_optimizer)
        count = population.num_clients
        return AflServer(average, jnp.full(count, 1 / count, tree.dtype(average.params)))

    def download(server, context):
        return server.average.params, server.mixture[context.client_id]

    def client_update(received, client, data, context):
        params, weight = received
        loss = full_batch.mean_loss(task, params, data, context.child(0), local)
        trained = core.train(task.loss, params, data, context.child(1), local)
        change = tree.subtract(trained.params, params)
        return core.ClientOutput(
            state=client, sum=core.weighted(change, weight), each=loss, metrics=trained.metrics
        )

    def server_update(server, uploads, cohort, context):
        losses = stacked.update_rows(jnp.zeros_like(server.mixture), cohort, uploads.each)
        return AflServer(
            averaging.apply(server.average, uploads.total, server_optimizer),
            simplex.project(server.mixture + gamma * losses),
        )

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: (),
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: server.average.params,
        global_params=lambda server: server.average.params,
        download=download,
    )
