"""AdaFedProx: FedProx whose server adapts the weight of the proximal term to the loss.

Server: FedAvg's, the weight `mu`, the last loss of the model and for how many rounds it has
decreased. Client: nothing. Down: `w`, `mu`. Up: `theta_k - w` and the loss of `w`, weighted by
examples (`sum`).
Cost per client and round: one local training, and a pass without gradients for the loss.

References:
  Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous
  Networks", 2020, https://arxiv.org/abs/1812.06127 (figure 3 and appendix C.3.3).
  Granqvist et al., "pfl-research: Simulation Framework for Accelerating Research in Private
  Federated Learning", 2024, https://arxiv.org/abs/2404.06430 (which names it AdaFedProx).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.fedprox import fedprox
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, stacked


class AdaFedProxServer(NamedTuple):
    """Server state.

    Attributes:
      average: The model and its optimizer's state.
      mu: `[]`, the weight of the proximal term in the next round.
      loss: `[]`, the mean loss of the last round's model before training; 0 before the first round.
      has_loss: `[]` bool, whether there is such a loss.
      decreases: `[]` int32, the number of rounds for which the loss has decreased without a break.
    """

    average: averaging.ServerState
    mu: jax.Array
    loss: jax.Array
    has_loss: jax.Array
    decreases: jax.Array


@checked
def adafedprox(
    task: core.Task,
    local: core.LocalTraining,
    *,
    initial_mu: Annotated[float, core.at_least(0)] = 0.0,
    largest_mu: Annotated[float, core.at_least(0)] = 1.0,
    change: Annotated[float, core.at_least(0)] = 0.1,
    patience: Annotated[int, core.at_least(1)] = 5,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging with a proximal term of adaptive weight.

        theta_k = local training from w on L_k(theta) + mu/2 ||theta - w||^2;   w as in FedAvg
        loss = sum_k n_k L_k(w) / sum_k n_k,   of the cohort, before its training
        mu <- min(mu + change, largest_mu)   if loss has increased since the last round
        mu <- max(mu - change, 0)            if it has decreased for the last `patience` rounds

    Args:
      task: The model and its loss.
      local: The clients' local training.
      initial_mu: Weight of the proximal term in the first two rounds, 0 to 1.
      largest_mu: The weight up to which it may increase, 0.1 to 10; 0, with `initial_mu=0`, is
        FedAvg.
      change: The change of the weight, 0.01 to 0.2; 0 is FedProx with `mu=initial_mu`.
      patience: Number of consecutive decreases of the loss from which on the weight decreases, 1
        to 10.
      server_optimizer: As in FedAvg.

    Returns:
      The method; its global model is FedAvg's.

    Notes:
      The paper starts with 0 on heterogeneous data and with 1 on homogeneous data, in both cases
      the less suitable value; the documentation of pfl-research recommends the opposite. As in
      pfl-research, the weight is at most 1 and goes on to decrease while the loss does. There,
      `patience` is 1 by default, the first loss counts as a decrease and an equal loss as an
      increase; here neither changes the weight. The paper shows the training loss of all clients;
      here the loss is the cohort's, which also changes with its clients if not all take part. A
      weight takes effect in the round after the loss, as clients report the loss together with
      their change.
    """
    average = fedavg(task, local, server_optimizer=server_optimizer)

    def init_server(population, key):
        server = average.init_server(population, key)
        dtype = tree.dtype(server.params)
        nothing = (jnp.zeros((), dtype), jnp.zeros((), bool), jnp.zeros((), jnp.int32))
        return AdaFedProxServer(server, jnp.asarray(initial_mu, dtype), *nothing)

    def client_update(server, client, data, context):
        proximal = fedprox(task, local, mu=server.mu)
        output = proximal.client_update(server.average, client, data, context.child(0))
        model = stacked.repeat(server.average.params, 1)
        (loss,) = stacked.mean_losses(task, model, data, context.child(1), local)
        total = (output.sum, core.weighted(loss, data.size))
        return output._replace(sum=total, metrics={**output.metrics, "mu": server.mu})

    def server_update(server, uploads, cohort, context):
        total, losses = uploads.total
        moved = average.server_update(server.average, core.Uploads(total, ()), cohort, context)
        loss = jnp.where(losses.weight > 0, core.mean(losses), server.loss)
        increased = server.has_loss & (loss > server.loss)
        decreased = server.has_loss & (loss < server.loss)
        decreases = jnp.where(decreased, server.decreases + 1, 0)
        raised = jnp.minimum(server.mu + change, jnp.maximum(server.mu, largest_mu))
        lowered = jnp.where(decreases >= patience, jnp.maximum(server.mu - change, 0), server.mu)
        mu = jnp.where(increased, raised, lowered).astype(server.mu.dtype)
        return AdaFedProxServer(moved, mu, loss, server.has_loss | (losses.weight > 0), decreases)

    return average._replace(
        init_server=init_server,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: server.average.params,
        global_params=lambda server: server.average.params,
    )
