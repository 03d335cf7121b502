"""FedPCL: private bodies, contrasted with the global prototypes and with those of each client.

Server: the global prototypes, each client's prototypes, the initial model.
Client: its body, its prototypes. Down: all prototypes. Up: its prototypes (`each`).
Cost per client and round: one local training and a pass without gradients; `C (d + 1)` numbers up,
`(N + 1) C (d + 1)` down.

References:
  Tan, Long, Ma, Liu, Zhou, Jiang, "Federated Learning from Pre-Trained Models: A Contrastive
  Learning Approach", 2022, https://arxiv.org/abs/2209.10083 (algorithm 1).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax.numpy as jnp

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import join_params, split_params
from pfljax.ops import contrast, prototypes, similarity, stacked


class FedPCLServer(NamedTuple):
    """Server state.

    Attributes:
      initial_params: The initial model of clients, which never changes.
      prototypes: The global prototypes.
      each: The last prototypes of each client, `[N, C, d]` and `[N, C]`.
    """

    initial_params: core.Params
    prototypes: prototypes.Prototypes
    each: prototypes.Prototypes


class FedPCLClient(NamedTuple):
    """Private state of a client.

    Attributes:
      body: Its body.
      own: Its last prototypes.
    """

    body: core.Params
    own: prototypes.Prototypes


def padded(own: prototypes.Prototypes, common: prototypes.Prototypes) -> prototypes.Prototypes:
    """Returns prototypes of a client, or of each `[N, ...]`, and the common ones that it lacks."""
    means = jnp.where(own.seen[..., None], own.means, common.means)
    return prototypes.Prototypes(means, own.seen | common.seen)


@checked
def fedpcl(
    task: core.Task,
    local: core.LocalTraining,
    *,
    tau: Annotated[float, core.above(0)] = 0.07,
    own_class: bool = False,
) -> core.Algorithm:
    """Private bodies, trained without a head on cosines with prototypes.

        u = z / ||z||,   C(P) = mean_i (log sum_{c != y_i} exp(u_i P_c / tau) - u_i P_{y_i} / tau)
        body_k <- local training on C(G) + mean_j C(P_j) over the clients j
        P_kc <- mean(u_i: y_i = c),   G_c <- mean_k P_kc over the cohort's clients with class c
        predicted class of u: the largest u P_kc;   a class that P_k lacks is that of G

    Args:
      task: The model and its loss, for classification; its head is not used.
      local: The clients' local training.
      tau: Temperature of the cosines, 0.05 to 1.
      own_class: Whether the sum has the class of the example too, as a cross-entropy has.

    Returns:
      The method; a client's state is its body and its prototypes. It deploys both, with the global
      prototypes of other classes; its outputs are `u P_c` `[B, C]`. There is no global model.

    Notes:
      The paper trains a layer on features of fixed networks, which are the body here if its other
      layers are not trained. A client is contrasted with the last prototypes of each client that
      has sent some; in PFLlib with those of the last cohort. As long as there are no prototypes,
      training has no effect, and the outputs are those of the initial head; later, a class without
      prototype scores 1 below the others. PFLlib has `own_class=True`, a temperature of 1, clips
      gradients, and takes the prototypes in the order in which classes appear for those of the
      classes 0, 1, ...
    """
    directed = task._replace(features=lambda *args: similarity.unit(task.features(*args)))

    def init_server(population, key):
        params = task.init(key)
        none = prototypes.none(task.num_classes, task.num_features, tree.dtype(params))
        return FedPCLServer(params, none, stacked.repeat(none, population.num_clients))

    def init_client(server, profile, key):
        _, body = split_params(server.initial_params, task.is_head)
        return FedPCLClient(body, tree.zeros_like(server.prototypes))

    def client_update(server, client, data, context):
        head, _ = split_params(server.initial_params, task.is_head)
        common = server.prototypes
        sent = jnp.any(server.each.seen, axis=1)
        each = padded(server.each, common)

        def objective(params, batch, key):
            features = directed.features(params, batch.inputs, batch.mask, key)
            of_each = contrast.loss(features, batch, each, tau, own_class)
            whole = contrast.loss(features, batch, common, tau, own_class)
            return whole + core.mean_over(of_each, sent)

        trained = core.train(
            objective,
            join_params(client.body, head),
            data,
            context.child(0),
            local,
            trainable=task.is_body,
        )
        total, _ = prototypes.of_client(
            directed, trained.params, common, data, context.child(1), local.for_epochs(1)
        )
        own = prototypes.Prototypes(total.means, total.counts > 0)
        state = FedPCLClient(split_params(trained.params, task.is_head)[1], own)
        return core.ClientOutput(state=state, each=own, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        means, seen = uploads.each
        total = core.Weighted(jnp.sum(means, axis=0), jnp.sum(seen, axis=0).astype(means.dtype))
        return server._replace(
            prototypes=prototypes.renew(server.prototypes, total),
            each=stacked.update_rows(server.each, cohort, uploads.each),
        )

    def personalize(server, client, data, context):
        head, _ = split_params(server.initial_params, task.is_head)
        known = padded(client.own, server.prototypes)
        return {"model": join_params(client.body, head), "prototypes": known}

    def predict(params, inputs, key):
        features, known = task.features(params["model"], inputs), params["prototypes"]
        cosines = similarity.unit(features) @ known.means.T
        return prototypes.scores(cosines, known.seen, task.head(params["model"], features))

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        predict=predict,
    )
