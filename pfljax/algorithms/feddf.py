"""FedDF: FedAvg whose server distils the clients' models into the average, on examples of its own.

Server: FedAvg's; it also holds unlabeled examples. Client: nothing. Down: `w`. Up: `theta_k`, which
the server needs individually (`each`).
Cost per client and round: one local training; on the server one pass of each model of the cohort
over its examples, and `distillation_steps` of training.

References:
  Lin, Kong, Stich, Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning",
  2020, https://arxiv.org/abs/2006.07242 (algorithm 1, for one architecture).
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, per_example, stacked
from pfljax.ops.distillation import divergence


@checked
def feddf(
    task: core.Task,
    local: core.LocalTraining,
    *,
    distillation_steps: Annotated[int, core.at_least(1)] = 1000,
    distillation_rate: Annotated[float, core.at_least(0)] = 1e-3,
    distillation_batch: Annotated[int, core.at_least(2)] = 128,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
    server_data: core.ClientData | None = None,
) -> core.Algorithm:
    """Federated averaging with ensemble distillation at the server.

        theta_k = local training from w on L_k;   w as in FedAvg, then
        w <- distillation_steps of Adam on KL(softmax(mean_k f(x, theta_k)) || softmax(f(x, w)))

    Args:
      task: The model and its loss, for classification.
      local: The clients' local training.
      distillation_steps: Number of steps of the distillation in a round, 100 to 10,000.
      distillation_rate: Learning rate of Adam, which falls to 0 along a cosine in every round,
        0.0001 to 0.01; 0 is FedAvg.
      distillation_batch: Number of examples in a step of the distillation.
      server_optimizer: As in FedAvg.
      server_data: The examples of the server, whose labels are not used.

    Returns:
      The method; its server state and its global model are FedAvg's.

    Notes:
      The paper takes at most 10,000 steps and stops after 1,000 without a better score on
      validation examples of the server, which has none here; the default is the least number of
      steps of that rule. Clients of all sizes have the same weight in the mean of the logits. Batch
      normalization uses the running statistics of the clients' models; the average trains in
      training mode and observes the examples of the server, as in the authors' code.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task)
    distilling = local._replace(
        optimizer=optax.adam(distillation_rate),
        batch_size=distillation_batch,
        num_steps=distillation_steps,
        drop_remainder=False,
        shuffle=True,
        schedule=None,
        step_schedule=optax.cosine_decay_schedule(1.0, distillation_steps),
    )

    def client_update(server, client, data, context):
        trained = core.train(task.loss, server.params, data, context, local)
        return core.ClientOutput(state=client, each=trained.params, metrics=trained.metrics)

    def mean_logits(models, present, context):
        """Returns the mean of the models' logits on each example of the server."""

        def logits_of(params):
            def rows(batch):
                return task.predict(params, batch.inputs)

            return per_example.collect(rows, server_data, context, distilling)

        def add(total, one):
            params, is_present = one
            return total + jnp.where(is_present, logits_of(params), 0), ()

        shape = jax.eval_shape(logits_of, stacked.take(models, 0))
        total, _ = jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), (models, present))
        return total / jnp.maximum(jnp.sum(present), 1)

    def objective(params, batch, key):
        logits = task.predict(params, batch.inputs, batch.mask, key)
        return divergence(batch.targets, logits, batch.mask)

    def server_update(server, uploads, cohort, context):
        models, sizes = uploads.each, cohort.sizes
        mean = stacked.mix(core.shares(sizes, tree.dtype(server.params)), models)
        change = core.weighted(tree.subtract(mean, server.params), jnp.sum(sizes))
        average = averaging.apply(server, change, server_optimizer)
        teacher = mean_logits(models, cohort.ids >= 0, context.child(0))
        data = per_example.with_targets(server_data, teacher)
        trained = core.train(objective, average.params, data, context.child(1), distilling)
        return average._replace(params=trained.params)

    joint = fedavg(task, local, server_optimizer=server_optimizer)
    return joint._replace(client_update=client_update, server_update=server_update)
