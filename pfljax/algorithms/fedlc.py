"""FedLC: logits are calibrated by how many examples of each class the client has.

Server: FedAvg's, and the number of examples of each class. Client: nothing.
Down: `w`. Up: `theta_k - w`, weighted by examples (`sum`).
Cost per client and round: one local training.

References:
  Zhang, Li, Li, Xu, Wu, Ding, Wu, "Federated Learning with Label Distribution Skew via Logits
  Calibration", 2022, https://arxiv.org/abs/2209.00189.
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
from pfljax.ops import averaging
from pfljax.ops.logits import among
from pfljax.ops.losses import cross_entropy


class FedLCServer(NamedTuple):
    """Attributes:
    average: the model `w` and its optimizer's state.
    class_counts: `[C]`, the number of examples of each class over all clients; constant.
    """

    average: averaging.ServerState
    class_counts: jax.Array


@checked
def fedlc(
    task: core.Task,
    local: core.LocalTraining,
    *,
    tau: Annotated[float, core.at_least(0)] = 1.0,
    pooled_counts: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging with calibrated logits.

        theta_k = local training from w on mean_i -log softmax(f(x_i) - tau n_k^(-1/4))_{y_i}
        n_k [C] = the client's examples of each class;   w as in FedAvg

    Args:
      task: The model, for classification; its loss is the cross-entropy.
      local: The clients' local training.
      tau: Strength of the calibration, 0.1 to 2; 0 is FedAvg with a softmax over the classes that
        the client has.
      pooled_counts: Whether `n` has the examples of all clients, as in PFLlib.
      server_optimizer: As in FedAvg.

    Returns:
      The method; its global model is FedAvg's, and predicts without calibration.

    Notes:
      A class without examples has the margin `tau n^(-1/4) -> infinity`: it is not part of the
      softmax, and its row of the head does not move. Where clients lack most classes, the global
      model learns slowly to separate them; `pooled_counts` keeps all classes in the softmax. The
      paper tunes tau; the default is PFLlib's.
    """
    average = fedavg(task, local, server_optimizer=server_optimizer)

    def init_server(population, key):
        start = average.init_server(population, key)
        counts = jnp.sum(population.class_counts, axis=0)
        return FedLCServer(start, counts.astype(tree.dtype(start.params)))

    def client_update(server, client, data, context):
        start = server.average.params
        counts = jnp.where(pooled_counts, server.class_counts, data.class_counts)
        margin = tau * jnp.maximum(counts, 1) ** -0.25

        def objective(params, batch, key):
            logits = task.predict(params, batch.inputs, batch.mask, key)
            logits = among(logits - margin.astype(logits.dtype), counts > 0)
            return cross_entropy(logits, batch)

        trained = core.train(objective, start, data, context, local)
        change = tree.subtract(trained.params, start)
        return core.ClientOutput(
            state=client, sum=core.weighted(change, data.size), metrics=trained.metrics
        )

    def server_update(server, uploads, cohort, context):
        return server._replace(
            average=average.server_update(server.average, uploads, cohort, context)
        )

    return average._replace(
        init_server=init_server,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: server.average.params,
        global_params=lambda server: server.average.params,
    )
