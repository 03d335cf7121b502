"""FedALA: each client mixes the common model into its own, with learned element-wise weights.

Server: FedAvg's. Client: its model `theta_k`, weights `W_k` for its upper layers.
Down: `w`. Up: `theta_k - w`, weighted by examples (`sum`).
Cost per client and round: one local training, and one pass over `share` of the examples for the
weights; up to `first_passes` of these in the first phase. Every evaluation needs them too.

References:
  Zhang, Hua, Wang, Song, Xue, Ma, Guan, "FedALA: Adaptive Local Aggregation for Personalized
  Federated Learning", 2023, https://arxiv.org/abs/2212.01197 (algorithm 1).
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
from pfljax.core.params import join_params, split_params
from pfljax.ops import averaging

# The first phase ends when the losses of the last ten passes hardly differ.
PASSES_COMPARED = 10


class FedAlaClient(NamedTuple):
    """Private state of a client.

    Attributes:
      params: `theta_k`, as last trained.
      weights: `W_k` in [0, 1], with the shapes of the upper layers; initially ones.
      started: `[]` bool, whether the first phase is over.
    """

    params: core.Params
    weights: core.Params
    started: jax.Array


@checked
def fedala(
    task: core.Task,
    local: core.LocalTraining,
    *,
    eta: Annotated[float, core.at_least(0)] = 1.0,
    share: Annotated[float, core.between(0, 1)] = 0.8,
    layers: Annotated[int, core.at_least(0)] = 1,
    first_passes: Annotated[int, core.at_least(1)] = 50,
    settled: Annotated[float, core.at_least(0)] = 0.1,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Adaptive local aggregation.

        lower layers of theta^_k:  those of w;   upper layers:  theta_k + W_k * (w - theta_k)
        W_k <- clip(W_k - eta grad_W L_k(theta^_k), 0, 1), batch by batch, before each training
        theta_k <- local training from theta^_k on L_k;   w as in FedAvg

    Args:
      task: The model and its loss; layers are counted from the last one.
      local: The clients' local training; its batch size is also that of the weights.
      eta: Learning rate of the weights, 0.1 to 10, without schedule; 0 is FedAvg.
      share: Fraction of the examples for learning weights, 0.05 to 1; the first ones without
        `shuffle`.
      layers: Number of layers with weights, from 1 to all; 0 is FedAvg.
      first_passes: Maximum number of passes for the weights in the first phase, 1 to 100; later
        one.
      settled: Standard deviation of the losses of ten passes that ends the first phase, 0.01 to
        0.1.
      server_optimizer: As in FedAvg.

    Returns:
      The method; its server state is FedAvg's. A client deploys `theta^_k`.

    Notes:
      A client's first phase is when it first receives a `w` that differs from its model. The paper
      then learns until the weights converge; the rule of ten passes is that of the authors' code,
      which uses the last batches' losses instead of the passes' means. The examples are
      consecutive rows from a random one on.
      Weights are learned in the training mode of batch normalization, whose running statistics have
      no gradient then: they keep the weight 1 and are those of `w`, also in upper layers.
    """
    chosen = task.layers[max(len(task.layers) - layers, 0) :]

    def is_upper(path):
        return any(path[: len(layer)] == layer for layer in chosen)

    def some(data, key):
        """Returns a view of the fraction `share` of the examples, at least one."""
        count = jnp.floor(share * data.size).astype(jnp.int32)
        count = jnp.clip(count, jnp.minimum(data.size, 1), data.size)
        start = jax.random.randint(key, (), 0, data.size - count + 1) if local.shuffle else 0
        return data.rows(start, start + count)

    def aggregate(server, client, data, context):
        """Returns `theta^_k`, the weights in it, and whether the first phase is over."""
        own, _ = split_params(client.params, is_upper)
        common, lower = split_params(server.params, is_upper)
        gap = tree.subtract(common, own)
        part = some(data, context.child(0).key)
        one_pass = local.for_epochs(1)._replace(drop_remainder=False)

        def mixture(weights):
            upper = jax.tree.map(lambda mine, w, gap: mine + w * gap, own, weights, gap)
            return join_params(upper, lower)

        def step(carry, batch, key):
            weights, losses = carry
            loss, slope = jax.value_and_grad(lambda w: task.loss(mixture(w), batch, key))(weights)
            moved = jax.tree.map(lambda w, g: jnp.clip(w - eta * g, 0, 1), weights, slope)
            return moved, losses + loss

        def learn(state):
            weights, recent, passes = state
            zero = jnp.zeros((), recent.dtype)
            moment = context.child(1).child(passes)
            weights, loss = core.for_each_batch(step, (weights, zero), part, moment, one_pass)
            loss = loss / jnp.maximum(core.steps_per_epoch(part.size, one_pass), 1)
            return weights, recent.at[passes % PASSES_COMPARED].set(loss), passes + 1

        def unfinished(state):
            _, recent, passes = state
            done = (passes > PASSES_COMPARED) & (jnp.std(recent) < settled)
            return (passes < limit) & ~done

        differs = (tree.squared_norm(gap) > 0) & (data.size > 0)
        limit = jnp.where(differs, jnp.where(client.started, 1, first_passes), 0)
        recent = jnp.zeros(PASSES_COMPARED, jnp.result_type(float))
        state = (client.weights, recent, jnp.zeros((), jnp.int32))
        weights, _, _ = jax.lax.while_loop(unfinished, learn, state)
        return mixture(weights), weights, client.started | differs

    def init_client(server, profile, key):
        upper, _ = split_params(server.params, is_upper)
        return FedAlaClient(server.params, jax.tree.map(jnp.ones_like, upper), jnp.bool_(False))

    def client_update(server, client, data, context):
        params, weights, started = aggregate(server, client, data, context.child(0))
        trained = core.train(task.loss, params, data, context.child(1), local)
        state = FedAlaClient(trained.params, weights, started)
        total = core.weighted(tree.subtract(trained.params, server.params), data.size)
        return core.ClientOutput(state=state, sum=total, metrics=trained.metrics)

    average = fedavg(task, local, server_optimizer=server_optimizer)
    return average._replace(
        init_client=init_client,
        client_update=client_update,
        personalize=lambda server, client, data, context: aggregate(server, client, data, context)[
            0
        ],
    )
