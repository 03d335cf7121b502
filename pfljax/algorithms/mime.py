"""Mime: MimeLite whose steps are corrected by the gradient of the whole cohort.

Server: MimeLite's. Client: nothing.
Before the update, up: the gradient of `L_k` at `w` (`prepare`), and down: the cohort's mean `c`.
Down: `w, m`. Up: `theta_k - w`, with uniform weights (`sum`).
Cost per client and round: a local training with two gradients in each step, and a gradient on all
examples.

References:
  Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh, "Mime: Mimicking Centralized Stochastic
  Algorithms in Federated Learning", 2020, https://arxiv.org/abs/2008.03606 (algorithm 1).
"""

from __future__ import annotations

from typing import Annotated

import jax
import optax

from pfljax import core
from pfljax.algorithms.mimelite import blend, mimelite
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, full_batch


@checked
def mime(
    task: core.Task,
    local: core.LocalTraining,
    *,
    beta: Annotated[float, core.between(0, 1)] = 0.9,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging of clients that mimic SGD with momentum on all examples, corrected.

        c = mean_k grad L_k(w) over the cohort;   g(theta) a gradient of L_k on the step's batch
        local steps from w:  theta <- theta - eta (beta m + (1 - beta) (g(theta) - g(w) + c))
        m <- beta m + (1 - beta) c;   w <- w + server_optimizer(-mean_k (theta_k - w))

    Args:
      task: The model and its loss.
      local: The clients' local training, of plain SGD.
      beta: Momentum, 0 to 0.99; 0 leaves the correction.
      server_optimizer: As in FedAvg.

    Returns:
      The method; its server state is MimeLite's. All clients deploy the global model.

    Notes:
      As in MimeLite, the server optimizer that the paper mimics is SGD with momentum. A round has
      two exchanges of messages, as in the paper: `c` is that of the round's own cohort, so that
      aggregators, which would change only the second message, are refused. With batch
      normalization both gradients use the statistics of their batch.
    """

    def prepare(received, data, context):
        slope = full_batch.gradient(task, received.average.params, data, context, local)
        return core.weighted(slope, 1.0)

    def client_update(server, client, data, context):
        start, mean = server.average.params, core.mean(context.prepared)

        def gradient(params, carry, batch, key):
            loss, slope = jax.value_and_grad(task.loss)(params, batch, key)
            at_start = jax.grad(task.loss)(start, batch, key)
            corrected = tree.add(tree.subtract(slope, at_start), mean)
            return loss, blend(beta, server.momentum, corrected), carry

        trained = core.descend(gradient, start, (), data, context, local)
        change = tree.subtract(trained.params, start)
        return core.ClientOutput(
            state=client, sum=core.weighted(change, 1.0), metrics=trained.metrics
        )

    def server_update(server, uploads, cohort, context):
        return server._replace(
            average=averaging.apply(server.average, uploads.total, optimizer),
            momentum=blend(beta, server.momentum, core.mean(context.prepared)),
        )

    optimizer = averaging.of_trainable(server_optimizer, task)
    lite = mimelite(task, local, beta=beta, server_optimizer=server_optimizer)
    return lite._replace(prepare=prepare, client_update=client_update, server_update=server_update)
