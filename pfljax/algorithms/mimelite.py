"""MimeLite: the clients' steps use the momentum of the server, which stays fixed in a round.

Server: the model `w`, the state of its optimizer, and the momentum `m`. Client: nothing.
Down: `w, m`. Up: `theta_k - w` and the gradient of `L_k` at `w`, with uniform weights (`sum`).
Cost per client and round: one local training, and a gradient on all examples.

References:
  Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh, "Mime: Mimicking Centralized Stochastic
  Algorithms in Federated Learning", 2020, https://arxiv.org/abs/2008.03606 (algorithm 1).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, full_batch


class MimeServer(NamedTuple):
    """Attributes:
    average: the model `w` and its optimizer's state.
    momentum: the momentum `m`, of the model's shape.
    """

    average: averaging.ServerState
    momentum: core.Params


def blend(beta: float | jax.Array, momentum: core.Params, gradient: core.Params) -> core.Params:
    """Returns `beta momentum + (1 - beta) gradient`, each leaf in its own dtype."""
    return tree.add(tree.scale(beta, momentum), tree.scale(1 - beta, gradient))


@checked
def mimelite(
    task: core.Task,
    local: core.LocalTraining,
    *,
    beta: Annotated[float, core.between(0, 1)] = 0.9,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging of clients that mimic SGD with momentum on all examples.

        local steps from w:  theta <- theta - eta (beta m + (1 - beta) g),  g a gradient of L_k
        m <- beta m + (1 - beta) mean_k grad L_k(w)
        w <- w + server_optimizer(-mean_k (theta_k - w))

    Args:
      task: The model and its loss.
      local: The clients' local training, of plain SGD.
      beta: Momentum, 0 to 0.99; 0 is FedAvg with uniform weights.
      server_optimizer: As in FedAvg.

    Returns:
      The method. All clients deploy the global model.

    Notes:
      The paper states it for any optimizer with a state; here it is SGD with momentum, whose `m`
      is a mean of gradients, so that the size of steps does not depend on `beta`. `grad L_k(w)`
      is on all examples of the client, batch by batch; with batch normalization each batch has its
      own statistics. Running statistics have no gradient, so their momentum remains zero; they are
      averaged.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task)

    def init_server(population, key):
        average = averaging.init(task.init(key), server_optimizer)
        return MimeServer(average, tree.zeros_like(average.params))

    def client_update(server, client, data, context):
        start = server.average.params

        def gradient(params, carry, batch, key):
            loss, slope = jax.value_and_grad(task.loss)(params, batch, key)
            return loss, blend(beta, server.momentum, slope), carry

        slope = full_batch.gradient(task, start, data, context.child(0), local)
        trained = core.descend(gradient, start, (), data, context.child(1), local)
        change = tree.subtract(trained.params, start)
        return core.ClientOutput(
            state=client, sum=core.weighted((change, slope), 1.0), metrics=trained.metrics
        )

    def server_update(server, uploads, cohort, context):
        change, slope = core.mean(uploads.total)
        return MimeServer(
            averaging.apply(server.average, core.weighted(change, 1.0), server_optimizer),
            blend(beta, server.momentum, slope),
        )

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: (),
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: server.average.params,
        global_params=lambda server: server.average.params,
    )
