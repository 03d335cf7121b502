"""APFL: every client predicts with a mixture of the common model and its own.

Server: the model `w`. Client: its model `v_k` and its mixing weight `alpha_k`.
Down: `w`. Up: `theta_k - w`, with uniform weights (`sum`); `v_k` and `alpha_k` never leave.
Cost per client and round: two local trainings, on the same batches.

References:
  Deng, Kamani, Mahdavi, "Adaptive Personalized Federated Learning", 2020,
  https://arxiv.org/abs/2003.13461 (algorithm 1, with the adaptive mixing weight).
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
from pfljax.core.params import replace_params, split_params
from pfljax.ops import averaging


class Own(NamedTuple):
    """The private state of a client.

    Attributes:
      params: `v_k`; its running statistics are those of the mixture.
      alpha: `[]`, its weight in the mixture.
    """

    params: core.Params
    alpha: jax.Array


class Share(NamedTuple):
    """The carry of local training.

    Attributes:
      alpha: `[]`, the mixing weight `alpha_k`.
      loss: `[]`, the sum of the mixture's losses.
      statistics: the mixture's running statistics, at their paths in the model.
    """

    alpha: jax.Array
    loss: jax.Array
    statistics: core.Params


def mixture(
    alpha: jax.Array, own: core.Params, common: core.Params, statistics: core.Params
) -> core.Params:
    """Returns `alpha own + (1 - alpha) common` with separate running statistics."""

    def one(v, w):
        weight = jnp.asarray(alpha, w.dtype)
        return weight * v + (1 - weight) * w

    return replace_params(jax.tree.map(one, own, common), statistics)


@checked
def apfl(
    task: core.Task,
    local: core.LocalTraining,
    *,
    alpha: Annotated[float, core.between(0, 1)] = 0.5,
    alpha_rate: Annotated[float, core.at_least(0)] = 0.01,
    use_client_rate: bool = False,
    weight_by_size: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Descent on the common model and, through the mixture, on the client's model.

        m = alpha_k v_k + (1 - alpha_k) theta          at every batch, all three at once:
        theta   <- theta - eta g(theta)
        v_k     <- v_k - eta alpha_k g(m)
        alpha_k <- alpha_k - alpha_rate <g(m), v_k - theta>,  kept in [0, 1]
        w       <- mean_k theta_k

    Args:
      task: The model and its loss.
      local: The clients' local training of both models.
      alpha: Initial value of `alpha_k`, 0 to 1; 0 is FedAvg, which evaluates `w`, and 1 with
        `alpha_rate=0` is local training beside it.
      alpha_rate: Learning rate of `alpha_k`, 0 to 0.1, without schedule; 0 keeps it.
      use_client_rate: Whether the learning rate of `alpha_k` is that of the models, with its
        schedule, as in the paper; False uses `alpha_rate`.
      weight_by_size: Whether to average with weights `n_k`; False averages uniformly, as in the
        paper.
      server_optimizer: As in FedAvg.

    Returns:
      The method; a client's state is `v_k` and `alpha_k`, and the server's is FedAvg's.

    Notes:
      The paper moves `alpha_k` along its gradient and leaves its range open; it is clipped so
      that the mixture is convex. PFLlib takes the gradient at `v_k` itself in place of the
      mixture, decays `alpha_k`, and overwrites `v_k` with the mixture at the end of a round, so
      that it is mixed twice; this is another method and not configurable.
      The statistics of a mixture are not a mixture of statistics: batch normalization has private
      running statistics, updated in training at the mixture. With batch normalization, `alpha=0`
      therefore deploys `w` with these instead of the average ones.
    """
    average = fedavg(task, local, server_optimizer=server_optimizer)

    def statistics_of(params):
        return split_params(params, task.is_statistic)[0]

    def init_client(server, profile, key):
        return Own(server.params, jnp.asarray(alpha, jnp.result_type(float)))

    def client_update(server, client, data, context):
        rate = local.rate(context.round) if use_client_rate else alpha_rate

        def gradient(models, share, batch, key):
            own, common = models["own"], models["common"]
            loss, of_common = jax.value_and_grad(task.loss)(common, batch, key)
            mixed = mixture(share.alpha, own, common, share.statistics)
            mixed_loss, of_mixture = jax.value_and_grad(task.loss)(mixed, batch, key)
            seen = {} if local.observe is None else local.observe(mixed, batch)
            of_own = jax.tree.map(lambda g: jnp.asarray(share.alpha, g.dtype) * g, of_mixture)
            slope = optax.tree.vdot(of_mixture, tree.subtract(own, common))
            moved = jnp.clip(share.alpha - rate * slope, 0.0, 1.0)
            share = Share(moved.astype(share.alpha.dtype), share.loss + mixed_loss, seen)
            return loss, tree.after({"own": of_own, "common": of_common}, slope), share

        start = {"own": client.params, "common": server.params}
        zero = jnp.zeros((), jnp.result_type(float))
        share = Share(client.alpha, zero, statistics_of(client.params))
        of_common = local.of_models("common")
        trained = core.descend(gradient, start, share, data, context, of_common)
        own = replace_params(trained.params["own"], trained.carry.statistics)
        steps = core.steps_per_round(data.size, local)
        change = tree.subtract(trained.params["common"], server.params)
        return core.ClientOutput(
            state=Own(own, trained.carry.alpha),
            sum=core.weighted(change, data.weight(weight_by_size)),
            metrics={
                **trained.metrics,
                "personal_loss": core.weighted(
                    trained.carry.loss / jnp.maximum(steps, 1), steps > 0
                ),
                "alpha": trained.carry.alpha,
            },
        )

    return average._replace(
        init_client=init_client,
        client_update=client_update,
        personalize=lambda server, client, data, context: mixture(
            client.alpha, client.params, server.params, statistics_of(client.params)
        ),
    )
