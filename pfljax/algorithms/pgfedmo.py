"""PGFedMo: PGFed whose clients keep a moving average of the gradient of the others' losses.

Server: PGFed's. Client: its model `theta_k`, and the moving average of `G_k`.
Down: PGFed's. Up: PGFed's, gradient, constant and weights in `each`.
Cost per client and round: PGFed's.

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
from pfljax.algorithms.pgfed import pgfed
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging


class PGFedMoClient(NamedTuple):
    """Attributes:
    params: `theta_k`, as last trained.
    auxiliary: the moving average of `G_k`; zero before the first.
    known: `[]` bool, whether the client has received a `G_k`.
    """

    params: core.Params
    auxiliary: core.Params
    known: jax.Array


@checked
def pgfedmo(
    task: core.Task,
    local: core.LocalTraining,
    *,
    mu: Annotated[float, core.at_least(0)] = 0.1,
    weight_rate: Annotated[float, core.at_least(0)] = 0.01,
    beta: Annotated[float, core.between(0, 1)] = 0.5,
    exact: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """PGFed with momentum of the gradients of other clients' losses.

        V_k <- beta V_k + (1 - beta) G_k;   V_k <- G_k in the first round with a G_k
        theta <- step of local.optimizer along grad f_k(theta) + V_k;   all else as in PGFed

    Args:
      task: The model and its loss.
      local: The clients' local training.
      mu: As in PGFed.
      weight_rate: As in PGFed.
      beta: Momentum of `V_k`, 0.1 to 0.9; 0 is PGFed.
      exact: As in PGFed.
      server_optimizer: As in FedAvg.

    Returns:
      The method. A client deploys its last model `theta_k`; the global model is `w`.

    Notes:
      `V_k` is that of the client's last participation, however long ago. The authors' code has this
      rule but cannot be started with it, as its command line refuses the name.
    """
    method = pgfed(
        *(task, local),
        mu=mu,
        weight_rate=weight_rate,
        exact=exact,
        server_optimizer=server_optimizer,
    )

    def init_client(server, profile, key):
        params = method.init_client(server, profile, key)
        return PGFedMoClient(params, tree.zeros_like(params), jnp.zeros((), bool))

    def client_update(received, client, data, context):
        new, momentum = received.auxiliary, jnp.where(client.known, beta, 0)
        auxiliary = tree.add_scale(new, momentum, tree.subtract(client.auxiliary, new))
        output = method.client_update(
            received._replace(auxiliary=auxiliary), client.params, data, context
        )
        known = client.known | jnp.any(received.last)
        return output._replace(state=PGFedMoClient(output.state, auxiliary, known))

    return method._replace(
        init_client=init_client,
        client_update=client_update,
        personalize=lambda server, client, data, context: client.params,
    )
