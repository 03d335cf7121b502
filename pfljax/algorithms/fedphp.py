"""FedPHP: a client inherits its personalized model from round to round, and learns from it.

Server: FedAvg's. Client: its inherited model `v_k`, and whether it has trained before.
Down: `w`. Up: `theta_k - w`, weighted by examples (`sum`); `v_k` never leaves the client.
Cost per client and round: one local training with two forward passes in a step.

References:
  Li, Zhan, Shao, Li, Song, "FedPHP: Federated Personalization with Inherited Private Models", 2021,
  https://doi.org/10.1007/978-3-030-86486-6_36.
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
from pfljax.ops import averaging, discrepancy, losses


class FedPHPClient(NamedTuple):
    """Attributes:
    params: the inherited model `v_k`.
    started: `[]` bool, whether the client has trained before.
    """

    params: core.Params
    started: jax.Array


@checked
def fedphp(
    task: core.Task,
    local: core.LocalTraining,
    *,
    mu: Annotated[float, core.between(0, 1)] = 0.9,
    lam: Annotated[float, core.between(0, 1)] = 0.01,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Inherited private models.

        theta_k = local training from w on (1 - lam) L_k + lam MMD^2(z_i, z_i of v_k)
        v_k <- theta_k in the client's first round, later m v_k + (1 - m) theta_k
        m = mu round / num_rounds;   w as in FedAvg

    Args:
      task: The model and its loss, with features `z`.
      local: The clients' local training.
      mu: Fraction of the old `v_k` that is kept in the last round, 0.5 to 1; 0 makes `v_k` the last
        `theta_k`.
      lam: Weight of the discrepancy between the features, 0.001 to 0.1; 0 trains as FedAvg, 1
        without `L_k`.
      server_optimizer: As in FedAvg.

    Returns:
      The method; a client deploys `v_k`, the global model is FedAvg's.

    Notes:
      As far as we know, m grows in the paper with the number of times that the client took part;
      here, as in PFLlib, with the round, which is the same at full participation. Of the paper's
      terms that transfer knowledge, this has the maximum mean discrepancy (`ops.discrepancy`). The
      defaults are the values that the authors recommend for PFLlib. Before its first round a client
      deploys the `w` that it received. Batch normalization is in training mode in both models.
    """
    average = fedavg(task, local, server_optimizer=server_optimizer)

    def init_client(server, profile, key):
        return FedPHPClient(server.params, jnp.zeros((), bool))

    def client_update(server, client, data, context):
        def objective(params, batch, key):
            own, inherited = (
                task.features(model, batch.inputs, batch.mask, key)
                for model in (params, client.params)
            )
            gap = discrepancy.squared_mmd(own, inherited, batch.mask)
            outputs = task.head(params, own, batch.mask, key)
            return (1 - lam) * losses.of_outputs(task, outputs, batch) + lam * gap

        trained = core.train(objective, server.params, data, context, local)
        kept = jnp.where(client.started, mu * context.round / context.num_rounds, 0)
        gap = tree.subtract(client.params, trained.params)
        state = FedPHPClient(tree.add_scale(trained.params, kept, gap), jnp.ones((), bool))
        change = tree.subtract(trained.params, server.params)
        return core.ClientOutput(
            state=state, sum=core.weighted(change, data.size), metrics=trained.metrics
        )

    return average._replace(
        init_client=init_client,
        client_update=client_update,
        personalize=lambda server, client, data, context: client.params,
    )
