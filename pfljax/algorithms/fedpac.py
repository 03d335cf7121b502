"""FedPAC: a common body aligned with global prototypes, and heads mixed for each client.

Server: the body, the prototypes, the initial head. Client: its head.
Down: the body and the prototypes; after the round a mixed head. Up: the body's change and the mean
feature of each class, weighted (`sum`); the head and `C d + 1` numbers of its features (`each`).
Cost per client and round: FedRep's, two passes without gradients, a quadratic program of `cohort`
unknowns.

References:
  Xu, Tong, Huang, "Personalized Federated Learning with Feature Alignment and Classifier
  Collaboration", 2023, https://arxiv.org/abs/2306.11867.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedper import fedper
from pfljax.algorithms.fedrep import head_then_body
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import join_params, split_params
from pfljax.ops import averaging, losses, prototypes, simplex, stacked


class FedPACServer(NamedTuple):
    """Attributes:
    average: the common body and its optimizer's state.
    initial_head: the head that a client starts with; never changes.
    prototypes: of the classes that some client had.
    """

    average: averaging.ServerState
    initial_head: core.Params
    prototypes: prototypes.Prototypes


class HeadOffer(NamedTuple):
    """What a client shows to those who may take from its head.

    Attributes:
      head: The head as trained in this round.
      shares: `[C, d]`, the mean feature of a class times the class's share of the examples.
      variance: `[]`, how far `shares` is from its expectation: the squared error of this estimate.
    """

    head: core.Params
    shares: jax.Array
    variance: jax.Array


def head_weights(
    offers: HeadOffer, present: jax.Array, member: jax.Array, least: float = 0.0
) -> jax.Array:
    """Returns `[cohort]`, how much of each head goes into that of row `member`, client k.

        min_a  sum_j a_j^2 V_j + ||sum_j a_j (H_k - H_j)||^2   with a >= 0, sum_j a_j = 1

    The offers are the cohort's, stacked; those not `present` `[cohort]` get no weight.
    """
    gaps = (offers.shares[member] - offers.shares).reshape(present.shape[0], -1)
    return simplex.minimize(gaps @ gaps.T + jnp.diag(offers.variance), present, least)


@checked
def fedpac(
    task: core.Task,
    local: core.LocalTraining,
    *,
    lam: Annotated[float, core.at_least(0)] = 1.0,
    head_epochs: Annotated[int, core.at_least(1)] = 1,
    least_weight: Annotated[float, core.between(0, 1)] = 0.0,
    weight_by_size: bool = True,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Personal heads, each a mixture of the cohort's, on a common body with aligned features.

        h_k <- head_epochs of training on L_k(body, h), the body fixed
        body_k <- local training on L_k(b, h_k) + lam mean_i [y_i seen] ||z_i - P_{y_i}||^2 / d
        body <- body + server_optimizer(-sum_k n_k (body_k - body) / sum_k n_k)
        P_c <- sum_k n_kc mean(z_i: y_i = c) / sum_k n_kc,   of body_k, clients that have class c
        h_k <- sum_j a_kj h_j,   a_k from `head_weights` with, under the body received,
        H_k = (n_kc / n_k mean(z_i: y_i = c))_c,   V_k = (mean_i ||z_i||^2 - ||H_k||^2) / n_k

    Args:
      task: The model and its loss, for classification.
      local: The clients' local training; its epochs are those of the body.
      lam: Weight of the distance to the prototypes, 0.1 to 10; 0 aligns nothing.
      head_epochs: Number of epochs of the head, 1 to 5 (paper: 1).
      least_weight: Heads with a weight up to this are removed from a mixture, 0 to 0.01.
      weight_by_size: Whether to average prototypes with weights `n_kc`; False weighs clients
        equally.
      server_optimizer: As in FedAvg, for the body.

    Returns:
      The method; a client's state is its head. There is no global model.

    Notes:
      A class that the cohort lacks keeps its prototype. The authors' code has `least_weight=0.001`;
      PFLlib drops such weights without rescaling, mixes one head after the other in place,
      weights prototypes equally, and may pair statistics with other heads. Batch normalization
      is in training mode in both trainings, and uses running statistics where features are
      averaged.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task)
    together = fedper(task, local, server_optimizer=server_optimizer)
    once = local.for_epochs(1)

    def init_server(population, key):
        server = together.init_server(population, key)
        dtype = tree.dtype(server.average.params)
        none = prototypes.none(task.num_classes, task.num_features, dtype)
        return FedPACServer(server.average, server.initial_head, none)

    def client_update(server, client, data, context):
        body, known = server.average.params, server.prototypes
        start, moment = join_params(body, client), context.child(2)
        before, squares = prototypes.of_client(task, start, known, data, moment, once)
        examples = jnp.maximum(jnp.sum(before.counts), 1)
        shares = before.sums / examples
        variance = jnp.maximum(squares / examples - tree.squared_norm(shares), 0)

        def objective(params, batch, key):
            features = task.features(params, batch.inputs, batch.mask, key)
            pull = prototypes.pull(known, features, batch)
            outputs = task.head(params, features, batch.mask, key)
            return losses.of_outputs(task, outputs, batch) + lam * pull

        trained = head_then_body(task, objective, start, data, context, local, head_epochs)
        new_head, new_body = split_params(trained.params, task.is_head)
        after, _ = prototypes.of_client(task, trained.params, known, data, context.child(3), once)
        change = core.weighted(tree.subtract(new_body, body), data.size)
        total = (change, after.weighted(weight_by_size))
        offer = HeadOffer(new_head, shares, variance / jnp.maximum(data.size, 1))
        return core.ClientOutput(state=new_head, sum=total, each=offer, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        change, total = uploads.total
        average = averaging.apply(server.average, change, server_optimizer)
        renewed = prototypes.renew(server.prototypes, total)
        return server._replace(average=average, prototypes=renewed)

    def exchange(server, client, data, uploads, cohort, member, context):
        present = cohort.sizes > 0
        weights = head_weights(uploads.each, present, member, least_weight)
        mixed = stacked.mix(weights, uploads.each.head)
        return tree.where(present[member], mixed, client)

    return together._replace(
        init_server=init_server,
        client_update=client_update,
        server_update=server_update,
        exchange=exchange,
    )
