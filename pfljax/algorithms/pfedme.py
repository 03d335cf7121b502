"""pFedMe: personalized models as solutions of a proximal problem around the common one.

Server: the model `w`. Client: its personalized model `theta_k`, for evaluation only.
Down: `w`. Up: `w_k - w`, with uniform weights (`sum`).
Cost per client and round: `inner_steps` local trainings.

References:
  Dinh, Tran, Nguyen, "Personalized Federated Learning with Moreau Envelopes", 2020,
  https://arxiv.org/abs/2006.08848 (algorithm 1).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import replace_params


@checked
def pfedme(
    task: core.Task,
    local: core.LocalTraining,
    *,
    lam: Annotated[float, core.at_least(0)] = 15.0,
    inner_steps: Annotated[int, core.at_least(1)] = 5,
    inner_rate: Annotated[float, core.at_least(0)] = 0.01,
    beta: Annotated[float, core.at_least(0)] = 1.0,
    weight_decay: Annotated[float, core.at_least(0)] = 0.0,
    weight_by_size: bool = False,
    train_to_evaluate: bool = False,
) -> core.Algorithm:
    """Descent on the clients' Moreau envelopes.

        per batch, inner_steps times:  theta <- theta - inner_rate (g(theta) + lam (theta - w_k))
        then once:                     w_k <- w_k - eta lam (w_k - theta)
        w <- (1 - beta) w + beta mean_k w_k

    Both start a round at the received `w`, and theta is carried from batch to batch.

    Args:
      task: The model and its loss.
      local: The clients' local training; SGD's learning rate is `eta`. Keep `eta lam` below 2.
      lam: Weight of the coupling of theta and `w_k`, 1 to 50 (paper: mostly 15).
      inner_steps: Number of steps on theta per batch, the paper's K, 1 to 10.
      inner_rate: Learning rate of these steps, 0.001 to 0.1; keep `inner_rate lam` below 2.
      beta: Step size of the server towards the mean, 1 to 4; 1 is the mean, 0 never moves.
      weight_decay: Coefficient of the decay of theta in each inner step; 0 in the paper.
      weight_by_size: Whether to average with weights `n_k`; False averages uniformly, as in the
        paper.
      train_to_evaluate: Whether, in an evaluation, every client solves for its theta from the
        current `w`; False evaluates the theta of the last round in which the client took part.

    Returns:
      The method; a client's state is its theta, that of `w` before its first round. The server
      state is FedAvg's.

    Notes:
      The paper solves for theta to a given accuracy, and uses K gradient steps in its experiments.
      The initial theta of a round is left open; here it is `w`, as in the authors' code. In paper
      and code all clients train in every round, and the server averages some of them. Here only
      the cohort trains; as theta starts every round at `w`, absent clients miss nothing but their
      theta, which `train_to_evaluate` computes: an evaluation is then the authors' personalized
      one of the next round, and costs a local training. A learning rate schedule also multiplies
      `inner_rate`, not `lam`. The code and PFLlib also decay theta by 0.001, and use weights `n_k`.
      PFLlib overwrites theta with `w_k` at the end of a round, so that its personalized evaluation
      is that of the global model; this is not reproduced.
      Each model has its own running statistics: theta's are updated at every inner step, those of
      `w_k` once per batch; the server averages the latter whatever `beta`.
    """

    def client_update(server, client, data, context):
        rate = local.scheduled(inner_rate, context.round)

        def gradient(params, theta, batch, key):
            """Solves for theta on a batch; returns the loss before the last inner step too."""

            def inner(index, carry):
                theta, _ = carry
                seen = {} if local.observe is None else local.observe(theta, batch)
                loss, slope = jax.value_and_grad(task.loss)(
                    theta, batch, jax.random.fold_in(key, index)
                )
                theta = jax.tree.map(
                    lambda t, g, w: t - rate * (g + lam * (t - w) + weight_decay * t),
                    theta,
                    slope,
                    params,
                )
                return replace_params(theta, seen), loss

            zero = jnp.zeros((), jnp.result_type(float))
            theta, loss = jax.lax.fori_loop(0, inner_steps, inner, (theta, zero))
            return loss, tree.scale(lam, tree.subtract(params, theta)), theta

        start = server.params
        trained = core.descend(gradient, start, start, data, context, local)
        has_batches = core.steps_per_epoch(data.size, local) > 0
        weight = data.weight(weight_by_size)
        return core.ClientOutput(
            state=tree.where(has_batches, trained.carry, client),
            sum=core.weighted(tree.subtract(trained.params, start), weight),
            metrics=trained.metrics,
        )

    def personalize(server, client, data, context):
        # Without examples the update costs nothing, and keeps the client's theta.
        size = jnp.where(train_to_evaluate, data.size, 0)
        again = dataclasses.replace(data, size=size)
        return client_update(server, client, again, context).state

    average = fedavg(task, local, server_optimizer=optax.sgd(beta))
    return average._replace(
        init_client=lambda server, profile, key: server.params,
        client_update=client_update,
        personalize=personalize,
    )
