"""PGFed: every client also descends on the others' losses, approximated to first order.

Server: FedAvg's, and of every client its last gradient, the constant of its linearized loss, and a
row of weights for the others; which clients were in the last cohort. Client: its model `theta_k`.
Down: `w`, the weighted gradient `G_k` and the mean gradient of the last cohort (with `exact` all
gradients), the constants and the client's weights. Up: `theta_k - w`, weighted by examples (`sum`);
the gradient, the constant and the weights (`each`).
Cost per client and round: one local training, and a pass with gradients over all examples.

References:
  Luo, Mendieta, Chen, Wu, "PGFed: Personalize Each Client's Global Objective for Federated
  Learning", 2023, https://arxiv.org/abs/2212.01448.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, full_batch, stacked


class PGFedServer(NamedTuple):
    """Server state.

    Attributes:
      average: The model `w` and its optimizer's state.
      gradients: `[N, ...]`, `g_j`, the gradient of each client's loss at its last model.
      constants: `[N]`, `l_j = f_j(theta_j) - <g_j, theta_j>`.
      weights: `[N, N]`, the paper's `alpha`; row k has the weights of client k for the others. Zero
        before the first round.
      last: `[N]` bool, the clients of the last cohort.
    """

    average: averaging.ServerState
    gradients: core.Params
    constants: jax.Array
    weights: jax.Array
    last: jax.Array


class PGFedDownload(NamedTuple):
    """What a client receives.

    Attributes:
      params: The model `w`.
      auxiliary: `G_k`, which the client adds to its gradients.
      slopes: `[N, ...]` or `[1, ...]`, the gradients `g_j` or their mean, for steps on the weights.
      constants: `[N]`, `l_j`.
      weights: `[N]`, `alpha_kj`.
      last: `[N]` bool, the clients `j` of the last cohort.
    """

    params: core.Params
    auxiliary: core.Params
    slopes: core.Params
    constants: jax.Array
    weights: jax.Array
    last: jax.Array


@checked
def pgfed(
    task: core.Task,
    local: core.LocalTraining,
    *,
    mu: Annotated[float, core.at_least(0)] = 0.1,
    weight_rate: Annotated[float, core.at_least(0)] = 0.01,
    exact: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Personalized global objectives, by Taylor expansions of the other clients' losses.

        F_k(theta) = f_k(theta) + mu sum_j alpha_kj (l_j + <g_j, theta>),   j in the last cohort
        g_j = grad f_j(theta_j);   l_j = f_j(theta_j) - <g_j, theta_j>
        local steps from w:  theta <- step of local.optimizer along grad f_k(theta) + G_k,
            alpha_kj <- max(0, alpha_kj - weight_rate mu (l_j + <mean_j g_j, theta>))
        G_k = mu sum_j alpha_kj g_j with the weights before the round;   w as in FedAvg

    Args:
      task: The model and its loss.
      local: The clients' local training.
      mu: Weight of the others' losses, 0.01 to 1; 0 is FedAvg, whose clients deploy the models that
        they trained.
      weight_rate: Learning rate of the weights `alpha`, 0.001 to 0.1; 0 keeps them.
      exact: Whether steps on `alpha_kj` use `g_j`, as the objective has it; False uses the mean of
        the gradients, as the authors' code, so that the download does not grow with the cohort.
      server_optimizer: As in FedAvg.

    Returns:
      The method. A client deploys its last model `theta_k`; the global model is `w`.

    Notes:
      All weights start at one over the number of clients of the first cohort. `G_k` is constant
      during a round, and the weights that the round learns act in the client's next one. A client
      of the last cohort has a weight for its own last loss too. In the first round there are no
      other losses. The authors' code keeps the momentum of clients from round to round; here an
      optimizer starts anew in each. It computes `f_k` and `g_k` without the last partial batch.
      With batch normalization they are in training mode, and `G_k` is zero for running statistics.
    """
    average = fedavg(task, local, server_optimizer=server_optimizer)

    def init_server(population, key):
        start, clients = average.init_server(population, key), population.num_clients
        weights = jnp.zeros((clients, clients), tree.dtype(start.params))
        gradients = stacked.repeat(tree.zeros_like(start.params), clients)
        return PGFedServer(start, gradients, weights[0], weights, jnp.zeros(clients, bool))

    def download(server, context):
        clients, count = server.last.shape[0], jnp.maximum(jnp.sum(server.last), 1)
        known = server.weights[jnp.minimum(context.client_id, clients - 1)]
        # A held-out client has no row.
        weights = jnp.where(context.client_id < clients, known, 1 / count)
        auxiliary = stacked.mix(mu * weights * server.last, server.gradients)
        slopes = server.gradients
        if not exact:
            slopes = stacked.mix((server.last / count)[None], server.gradients)
        return PGFedDownload(
            *(server.average.params, auxiliary, slopes, server.constants, weights, server.last)
        )

    def client_update(received, client, data, context):
        def gradient(params, weights, batch, key):
            loss, slope = jax.value_and_grad(task.loss)(params, batch, key)
            others = received.constants + stacked.products(received.slopes, params)
            moved = jnp.maximum(weights - weight_rate * mu * others, 0)
            weights = jnp.where(received.last, moved, weights).astype(weights.dtype)
            return loss, tree.add(slope, received.auxiliary), weights

        trained = core.descend(
            gradient, received.params, received.weights, data, context.child(0), local
        )
        theta = trained.params
        value, slope = full_batch.value_and_gradient(task, theta, data, context.child(1), local)
        constant = value - optax.tree.vdot(slope, theta)
        return core.ClientOutput(
            state=theta,
            sum=core.weighted(tree.subtract(theta, received.params), data.size),
            each=(slope, constant, trained.carry),
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        rows = (server.gradients, server.constants, server.weights)
        gradients, constants, weights = stacked.update_rows(rows, cohort, uploads.each)
        return PGFedServer(
            average.server_update(server.average, uploads, cohort, context),
            gradients,
            constants,
            jnp.where(jnp.any(server.last), weights, 1 / cohort.count).astype(weights.dtype),
            stacked.update_rows(jnp.zeros_like(server.last), cohort, True),
        )

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: server.average.params,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: client,
        global_params=lambda server: server.average.params,
        download=download,
    )
