"""FedAS: bodies are aligned with the client's own features, and averaged by Fisher traces.

Server: the body. Client: its model. Down: the body.
Up: the body's change, weighted by the trace of the client's Fisher information (`sum`).
Cost per client and round: one local training, two further passes with gradients and one without.

References:
  Yang, Huang, Ye, "FedAS: Bridging Inconsistency in Personalized Federated Learning", 2024, CVPR,
  https://openaccess.thecvf.com/content/CVPR2024/html/Yang_FedAS_Bridging_Inconsistency_in_Personalized_Federated_Learning_CVPR_2024_paper.html.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedper import fedper
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import join_params, split_params
from pfljax.ops import averaging, prototypes


@checked
def fedas(
    task: core.Task,
    local: core.LocalTraining,
    *,
    alignment_rate: Annotated[float, core.at_least(0)] = 0.01,
    alignment_batch: Annotated[int, core.at_least(1)] = 16,
    alignment_epochs: Annotated[int, core.at_least(1)] = 1,
    fisher_batch: Annotated[int, core.at_least(0)] = 0,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Personal heads on a common body that each client first aligns with its last one.

        P_kc = mean(z_i: y_i = c) under the last body_k
        b <- alignment_epochs of SGD on sum_c mean(||z_i - P_kc||^2 / d: y_i = c) from body
        (body_k, h_k) <- local training from (b, h_k) on L_k
        F_k = sum over batches of ||grad L_k(body_k, h_k)||^2
        body <- body + server_optimizer(-sum_k F_k (body_k - body) / sum_k F_k)

    Args:
      task: The model and its loss, for classification.
      local: The clients' local training.
      alignment_rate: Learning rate of the alignment, 0.001 to 0.1; 0 starts from the body received.
      alignment_batch: Number of examples in a step of the alignment.
      alignment_epochs: Number of passes of the alignment.
      fisher_batch: Number of examples of a gradient in `F_k`; 1 sums the squared gradients of
        single examples, 0 takes the batches of `local`, as the authors.
      server_optimizer: As in FedAvg, for the body.

    Returns:
      The method; a client's state is the model that it has trained last, which it deploys. The
      server's state is FedPer's. There is no global model.

    Notes:
      Rates, batches and squared gradients of batches are those of the authors' code and of PFLlib.
      A client that takes part for the first time has the received body as its last one; in both
      codes it has the initial body. There the server also averages heads, which no client uses,
      and absent clients compute `F_k` too. Prototypes and `F_k` use the running statistics of
      batch normalization, and the alignment those of the batch.
    """
    joint = fedper(task, local, server_optimizer=server_optimizer)
    aligning = local.for_epochs(alignment_epochs)._replace(
        optimizer=optax.sgd(alignment_rate), batch_size=alignment_batch, step_schedule=None
    )
    squaring = local.for_epochs(1)._replace(batch_size=fisher_batch or local.batch_size)

    def init_client(server, profile, key):
        return join_params(server.average.params, server.initial_head)

    def align(params, client, data, context):
        """The model `params` with a body whose features are like those of `client`."""
        dtype = tree.dtype(params)
        none = prototypes.none(task.num_classes, task.num_features, dtype)
        total, _ = prototypes.of_client(
            task, client, none, data, context.child(0), aligning.for_epochs(1)
        )
        own = prototypes.Prototypes(total.means, total.counts > 0)

        def objective(params, batch, key):
            features = task.features(params, batch.inputs, batch.mask, key)
            gaps = jnp.mean((features - own.means[batch.targets]) ** 2, axis=-1)
            member = jax.nn.one_hot(batch.targets, task.num_classes, dtype=dtype)
            member *= (batch.mask & own.seen[batch.targets])[:, None]
            return jnp.sum(gaps @ member / jnp.maximum(jnp.sum(member, axis=0), 1))

        return core.train(
            objective,
            params,
            data,
            context.child(1),
            aligning,
            trainable=lambda path: task.is_body(path) or task.is_statistic(path),
        ).params

    def fisher_trace(params, data, context):
        """`[]`, the squared gradients of the trained model, added up over batches."""
        statistics, weights = split_params(params, task.is_statistic)

        def step(total, batch, key):
            slope = jax.grad(
                lambda part: task.loss(join_params(part, statistics), batch, key, train=False)
            )(weights)
            return total + tree.squared_norm(slope)

        nothing = jnp.zeros((), tree.dtype(params))
        return core.for_each_batch(step, nothing, data, context, squaring)

    def client_update(server, client, data, context):
        body = server.average.params
        start = join_params(body, split_params(client, task.is_head)[0])
        aligned = align(start, client, data, context.child(0))
        trained = core.train(task.loss, aligned, data, context.child(1), local)
        trace = fisher_trace(trained.params, data, context.child(2))
        _, new_body = split_params(trained.params, task.is_head)
        return core.ClientOutput(
            state=trained.params,
            sum=core.weighted(tree.subtract(new_body, body), trace),
            metrics={**trained.metrics, "fisher_trace": trace},
        )

    return joint._replace(
        init_client=init_client,
        client_update=client_update,
        personalize=lambda server, client, data, context: client,
    )
