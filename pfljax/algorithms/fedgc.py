"""FedGC: the server spreads the private class embeddings of clients that have other classes.

Server: the body, the initial head; of the last cohort, mean embeddings of classes and their counts
and normalizers. Client: its head, for its own classes.
Down: the body, and after the round what corrects the head. Up: the body's change, weighted (`sum`);
the head and the classes that the client has (`each`).
Cost per client and round: one local training; at the server a product of all heads with all
embeddings.

References:
  Niu, Deng, "Federated Learning for Face Recognition with Gradient Correction", 2022,
  https://arxiv.org/abs/2112.07246.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedper import BodyServer, fedper
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import join_params, split_params, zero_params
from pfljax.ops import averaging
from pfljax.ops.logits import EXCLUDED, among, behind
from pfljax.ops.losses import cross_entropy


class FedGCServer(NamedTuple):
    """Attributes:
    shared: the common body and the initial head.
    embeddings: `[C, d]`, `e_c`, zeros for a class that the last cohort lacks.
    counts: `[C]`, `n_c`, the number of clients of the last cohort that have the class.
    normalizers: `[C]`, the logarithm of the denominator of each class's softmax.
    """

    shared: BodyServer
    embeddings: jax.Array
    counts: jax.Array
    normalizers: jax.Array


@checked
def fedgc(
    task: core.Task,
    local: core.LocalTraining,
    *,
    correction_rate: Annotated[float, core.at_least(0)] = 0.1,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Private class embeddings with a correction of their gradients.

        (body_k, W_k) <- local training from (body, W_k), with a softmax over the client's classes
        body <- body + server_optimizer(-sum_k n_k (body_k - body) / sum_k n_k)
        W_k <- W_k - correction_rate grad_{W_k} sum_c n_c log(e^{<e_c, e_c>} + sum e^{<W_jr, e_c>})
        e_c = the mean row of class c over the clients that have it, a constant;
        the inner sum is over all rows r of the clients j that lack c

    Args:
      task: The model and its loss, the cross-entropy.
      local: The clients' local training.
      correction_rate: Step size of the correction, multiplied by the clients' schedule, 0.01 to 1;
        0 leaves the heads as they are trained.
      server_optimizer: As in FedAvg, for the body.

    Returns:
      The method; a client's state is its head. It deploys body and head; a class that it never saw
      scores 1 below the others. There is no global model.

    Notes:
      The paper's clients have different identities; then every class has one client, `e_c` is its
      row, and the sum is over all rows of other clients. That clients share classes, and the
      constant `e_c`, are as in PFLlib. As far as we know, the paper's step size is the clients'
      learning rate times a weight. A row is the difference between the head's outputs at a feature
      and at zero, so that a bias has no part in it. The heads of the cohort only are corrected.
    """
    together = fedper(task, local, server_optimizer=server_optimizer)

    def init_server(population, key):
        shared = together.init_server(population, key)
        dtype, classes = tree.dtype(shared.initial_head), task.num_classes
        counts = jnp.zeros(classes, dtype)
        return FedGCServer(shared, jnp.zeros((classes, task.num_features), dtype), counts, counts)

    def scores_of(server, head, features):
        """`[n, C]`, the products of the rows of a head with features `[n, d]`."""
        params = join_params(server.shared.average.params, head)
        return task.head(params, features) - task.head(params, jnp.zeros_like(features))

    def rows_of(server, head):
        """`[C, d]`, the class embeddings of a head."""
        basis = jnp.eye(task.num_features, dtype=server.embeddings.dtype)
        return scores_of(server, head, basis).T

    def client_update(server, client, data, context):
        body, present = server.shared.average.params, data.class_counts > 0

        def objective(params, batch, key):
            logits = among(task.predict(params, batch.inputs, batch.mask, key), present)
            return cross_entropy(logits, batch)

        trained = core.train(objective, join_params(body, client), data, context, local)
        head, new_body = split_params(trained.params, task.is_head)
        change = core.weighted(tree.subtract(new_body, body), data.size)
        return core.ClientOutput(
            state=head, sum=change, each=(head, present), metrics=trained.metrics
        )

    def server_update(server, uploads, cohort, context):
        heads, present = uploads.each
        rows = jax.vmap(lambda head: rows_of(server, head))(heads)  # [cohort, C, d]
        counts = jnp.sum(present, axis=0).astype(rows.dtype)
        total = jnp.sum(jnp.where(present[..., None], rows, 0), axis=0)
        embeddings = total / jnp.maximum(counts, 1)[:, None]
        scores = jnp.einsum("krd,cd->kcr", rows, embeddings)
        others = ~present[:, :, None] & present[:, None, :]  # none in a padding slot
        scores = jnp.where(others, scores, EXCLUDED).transpose(1, 0, 2)
        own = jnp.sum(embeddings**2, axis=-1)
        rest = jax.nn.logsumexp(scores.reshape(own.shape[0], -1), axis=-1)
        shared = together.server_update(server.shared, uploads, cohort, context)
        return FedGCServer(shared, embeddings, counts, jnp.logaddexp(own, rest))

    def exchange(server, client, data, uploads, cohort, member, context):
        present = data.class_counts > 0
        weights = jnp.where(present, 0, server.counts)[:, None] * present  # [C, rows]

        def penalty(head):
            scores = scores_of(server, head, server.embeddings)
            shares = jnp.exp(jnp.where(weights > 0, scores - server.normalizers[:, None], EXCLUDED))
            return jnp.sum(weights * jax.lax.stop_gradient(shares) * scores)

        slope = zero_params(jax.grad(penalty)(client), task.is_statistic)
        rate = local.scheduled(correction_rate, context.round)
        return tree.add_scale(client, -rate, slope)

    def personalize(server, client, data, context):
        model = join_params(server.shared.average.params, client)
        return {"model": model, "present": data.class_counts > 0}

    def predict(params, inputs, key):
        return behind(task.predict(params["model"], inputs), params["present"])

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: server.shared.initial_head,
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        predict=predict,
        exchange=exchange,
    )
