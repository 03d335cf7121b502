"""APPLE: every client learns how to mix the core models of all clients.

Server: the clients' core models, and their fractions of the examples. Client: its relations, a
weight for each core. Down: all cores and fractions. Up: the client's core (`each`). Cost per client
and round: one local training, with a sum of N models and N products with the gradient in every
step; N models down. For few clients.

References:
  Luo, Wu, "Adapt to Adaptation: Learning Personalization for Cross-Silo Federated Learning", 2022,
  https://arxiv.org/abs/2110.08394.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import stacked


class AppleServer(NamedTuple):
    """Server state.

    Attributes:
      cores: `[N, ...]`, each client's core model.
      shares: `[N]`, each client's fraction of all training examples, the paper's `p_0`; constant.
    """

    cores: core.Params
    shares: jax.Array


def annealing(
    round: jax.Array, num_rounds: jax.Array, duration: float, exponential: bool, epsilon: float
) -> jax.Array:
    """Returns `[]`: 1 in round 0, decreasing, and 0 after the fraction `duration` of the run."""
    last = duration * num_rounds
    done = round / jnp.maximum(last, 1e-6)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * done))
    return jnp.where(round < last, jnp.where(exponential, epsilon**done, cosine), 0)


@checked
def apple(
    task: core.Task,
    local: core.LocalTraining,
    *,
    relation_rate: Annotated[float, core.at_least(0)] = 0.001,
    mu: Annotated[float, core.at_least(0)] = 0.2,
    duration: Annotated[float, core.between(0, 1)] = 0.1,
    exponential: bool = True,
    epsilon: Annotated[float, core.above(0, 1)] = 0.001,
    uniform_start: bool = False,
    one_core: bool = False,
) -> core.Algorithm:
    """Core models of all clients, mixed by directed relations.

        theta_k = sum_j p_kj c_j;   g = the gradient of L_k at theta_k
        c_k <- step of local.optimizer along N p_kk g
        p_kj <- p_kj - relation_rate (<g, c_j> + lambda mu (p_kj - n_j / n)),   for all j
        lambda = (1 + cos(pi r / R)) / 2 or epsilon^(r / R) in round r < R, later 0

    Args:
      task: The model and its loss.
      local: The clients' local training of their cores.
      relation_rate: Learning rate of the relations, 0.0001 to 0.05; 0 keeps them.
      mu: Weight of the proximal term of the relations, 0.001 to 1.
      duration: R as a fraction of the run, 0 to 1; 0 disables the proximal term.
      exponential: Whether to use the second form of lambda; False uses the cosine.
      epsilon: Final value of the second form, 0.0001 to 0.1.
      uniform_start: Whether relations are initialized to 1 / N; False uses the fractions of
        examples.
      one_core: Whether all clients start with the same core; False draws one for each.

    Returns:
      The method; a client's state is its relations `[N]`. It deploys the mixture of the server's
      cores. There is no global model.

    Notes:
      The paper's rate of the cores is N times that of `local`: a core gets only its fraction of the
      gradient, so that one rate suits any number of clients. Initial relations and cores, mu, R and
      the form of lambda follow the authors' code, as the paper leaves them open; that code has mu
      0.1 without the paper's 1/2, which is 0.2 here. It also applies the learning rate decay to the
      relations, which have no schedule here. All cores are sent. A client that never took part has
      no core and learns relations to those of the others. PFLlib uploads the mixture instead of the
      core, sends later clients the cores of earlier ones in the same round, averages instead of
      summing the product, and has `one_core`, the cosine and `duration=1`. Weights of cores may be
      negative, which excludes running statistics of batch normalization.
    """

    def init_server(population, key):
        params, clients = task.init(key), population.num_clients
        keys = jax.random.split(jax.random.fold_in(key, 1), clients)
        cores = tree.where(one_core, stacked.repeat(params, clients), jax.lax.map(task.init, keys))
        return AppleServer(cores, core.shares(population.sizes, tree.dtype(params)))

    def init_client(server, profile, key):
        return jnp.where(uniform_start, 1 / server.shares.shape[0], server.shares)

    def client_update(server, client, data, context):
        clients = server.shares.shape[0]
        received = stacked.take(server.cores, context.client_id)
        own = jax.nn.one_hot(context.client_id, clients, dtype=client.dtype)  # zeros: no core
        factor = annealing(context.round, context.num_rounds, duration, exponential, epsilon)
        pull = jnp.asarray(mu * factor, client.dtype)

        def gradient(params, relations, batch, key):
            # The server's stack contains the received core of this client; `moved` is its change.
            moved, weight = tree.subtract(params, received), own @ relations
            mixture = tree.add(stacked.mix(relations, server.cores), tree.scale(weight, moved))
            loss, slope = jax.value_and_grad(task.loss)(mixture, batch, key)
            products = stacked.products(server.cores, slope) + own * optax.tree.vdot(moved, slope)
            step = products + pull * (relations - server.shares)
            return loss, tree.scale(clients * weight, slope), relations - relation_rate * step

        trained = core.descend(gradient, received, client, data, context, local)
        return core.ClientOutput(state=trained.carry, each=trained.params, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        return server._replace(cores=stacked.update_rows(server.cores, cohort, uploads.each))

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: stacked.mix(client, server.cores),
    )
