"""MOON: features move towards those of the global model and away from the client's last ones.

Server: FedAvg's. Client: its model at the end of its last local training.
Down: `w`. Up: `theta_k - w`, weighted by examples (`sum`).
Cost per client and round: one local training with three forward passes in a step.

References:
  Li, He, Song, "Model-Contrastive Federated Learning", 2021, https://arxiv.org/abs/2103.16257
  (algorithm 1).
"""

from __future__ import annotations

from typing import Annotated

import jax
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, losses
from pfljax.ops.similarity import cosine


@checked
def moon(
    task: core.Task,
    local: core.LocalTraining,
    *,
    mu: Annotated[float, core.at_least(0)] = 1.0,
    tau: Annotated[float, core.above(0)] = 0.5,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging with a model-contrastive term.

        theta_k <- local training from w on L_k + mu mean_i -log(e^g_i / (e^g_i + e^p_i))
        g_i = cos(z_i, z_i of w) / tau,   p_i = cos(z_i, z_i of the client's last model) / tau
        w as in FedAvg;   the client keeps theta_k as its last model

    Args:
      task: The model and its loss, with features `z`.
      local: The clients' local training.
      mu: Weight of the contrastive term, 0.1 to 10; 0 is FedAvg (paper: 1 or 5).
      tau: Temperature of the similarities, 0.1 to 1 (paper: 0.5).
      server_optimizer: As in FedAvg.

    Returns:
      The method; a client's state is its last model, the global model is FedAvg's.

    Notes:
      The paper adds a projection of two layers to the network, whose output is `z`; here `z` are
      the features that the head reads, as in PFLlib. Before its first training a client's last
      model is the `w` that it receives, where the term has no gradient; the authors' code also has
      no term in the first round. Batch normalization is in training mode in all three models; in
      the authors' code the two fixed ones are in evaluation mode.
    """
    average = fedavg(task, local, server_optimizer=server_optimizer)

    def init_client(server, profile, key):
        return server.params

    def client_update(server, client, data, context):
        def objective(params, batch, key):
            own, common, last = (
                task.features(model, batch.inputs, batch.mask, key)
                for model in (params, server.params, client)
            )
            gap = (cosine(own, last) - cosine(own, common)) / tau
            contrast = core.mean_over(jax.nn.softplus(gap), batch.mask)
            outputs = task.head(params, own, batch.mask, key)
            return losses.of_outputs(task, outputs, batch) + mu * contrast

        trained = core.train(objective, server.params, data, context, local)
        change = tree.subtract(trained.params, server.params)
        return core.ClientOutput(
            state=trained.params, sum=core.weighted(change, data.size), metrics=trained.metrics
        )

    return average._replace(init_client=init_client, client_update=client_update)
