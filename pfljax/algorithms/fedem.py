"""FedEM: every client predicts with its mixture of shared learners.

Server: the learners `theta_1 ... theta_M` and the state of their optimizer. Client: its mixture
weights `pi_k`. Down: the learners. Up: their changes, weighted by examples (`sum`). Cost per client
and round: a local training of M models and, for the responsibilities, another forward pass of each;
another pass without gradients for `pi_k`. M times FedAvg's messages.

References:
  Marfoq, Neglia, Bellet, Kameni, Vidal, "Federated Multi-Task Learning under a Mixture of
  Distributions", 2021, https://arxiv.org/abs/2108.10252 (FedEM, the client-server algorithm).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, stacked


class FedEMServer(NamedTuple):
    """Attributes:
    average: the learners, leaves `[M, ...]`, and their optimizer's state.
    examples: `[]`, training examples of all clients; never changes.
    """

    average: averaging.ServerState
    examples: jax.Array


@checked
def fedem(
    task: core.Task,
    local: core.LocalTraining,
    *,
    learners: Annotated[int, core.at_least(1)] = 3,
    absent_count: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Expectation-maximization over clients.

        q_im = pi_km exp(-l(theta_m; i)) / sum_n pi_kn exp(-l(theta_n; i)),   for each example i
        pi_k <- mean_i q_i
        theta_km <- local training from theta_m on mean_i q_im l(theta; i);   theta_m as in FedAvg
        probabilities of x:  sum_m pi_km softmax(f_m(x))

    Args:
      task: The model and its losses, for classification.
      local: The clients' local training of all learners.
      learners: Number of learners, the paper's M, 2 to 5 (paper: 3); 1 is FedAvg.
      absent_count: Whether absent clients count in the average, by their examples, with
        unchanged learners; False averages over the cohort.
      server_optimizer: As in FedAvg, for the learners.

    Returns:
      The method; a client's state is `pi_k` `[M]`. It deploys the learners with `pi_k`; its
      outputs are log probabilities. There is no global model.

    Notes:
      As in the paper, the responsibilities `q` are those of the received learners and the old
      `pi_k`, and are fixed during the local epochs. They are not stored but recomputed for each
      batch: the same values, unless the model's losses are random. Absent clients keep
      their `pi_k`; a client that never took part computes it by one step from uniform weights. In
      the paper all clients take part; the authors' code has `absent_count`, which is then the same.
      Batch normalization uses running statistics for the responsibilities, which evaluate the
      received learners, and is in training mode in the training that follows.
    """

    server_optimizer = averaging.of_trainable(server_optimizer, task)
    of_learners = local
    if local.observe is not None:
        of_learners = local._replace(observe=jax.vmap(local.observe, in_axes=(0, None)))

    def init_server(population, key):
        # Learners with equal initial params would stay equal, so each is initialized differently.
        models = jax.vmap(task.init)(jax.random.split(key, learners))
        total = jnp.sum(population.sizes).astype(tree.dtype(models))
        return FedEMServer(averaging.init(models, server_optimizer), total)

    def init_client(server, profile, key):
        dtype = tree.dtype(server.average.params)
        return jnp.full(learners, 1 / learners, dtype)

    def client_update(server, client, data, context):
        received = server.average.params

        def responsibilities(batch, key):
            """Returns `[M, B]`; columns add up to 1."""
            losses = stacked.losses(task, received, batch, key, train=False)
            scores = jnp.log(client)[:, None] - losses
            return jax.nn.softmax(scores, axis=0)

        def objective(models, batch, key):
            losses = responsibilities(batch, key) * stacked.losses(task, models, batch, key)
            return core.mean_over(jnp.sum(losses, axis=0), batch.mask)

        def count(total, batch, key):
            return total + jnp.sum(responsibilities(batch, key) * batch.mask, axis=1)

        nothing, whole = jnp.zeros_like(client), local.one_pass()
        total = core.for_each_batch(count, nothing, data, context.child(0), whole)
        mixture = jnp.where(data.size > 0, total / jnp.maximum(data.size, 1), client)

        trained = core.train(objective, received, data, context.child(1), of_learners)
        change = tree.subtract(trained.params, received)
        return core.ClientOutput(
            state=mixture,
            sum=core.weighted(change, data.size),
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        # Whatever weights an aggregator leaves, absent clients count by their examples.
        present = jnp.sum(cohort.sizes) / server.examples
        change, weight = uploads.total
        counted = core.Weighted(tree.scale(jnp.where(absent_count, present, 1), change), weight)
        return server._replace(average=averaging.apply(server.average, counted, server_optimizer))

    def predict(params, inputs, key):
        outputs = jax.vmap(task.predict, in_axes=(0, None))(params["learners"], inputs)
        logs = jnp.log(params["mixture"])[:, None, None] + jax.nn.log_softmax(outputs, axis=-1)
        return jax.nn.logsumexp(logs, axis=0)

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: {
            "learners": server.average.params,
            "mixture": client,
        },
        predict=predict,
    )
