"""FD: clients share their mean prediction for each class instead of a model (FedDistill).

Server: the sums of the clients' mean predictions, the initial model. Client: its model, and what it
has sent last. Down: the sums. Up: the mean prediction of each class (`sum`).
Cost per client and round: one local training; `C (C + 1)` numbers up.

References:
  Jeong, Oh, Kim, Park, Bennis, Kim, "Communication-Efficient On-Device Machine Learning: Federated
  Distillation and Augmentation under Non-IID Private Data", 2018,
  https://arxiv.org/abs/1811.11479 (algorithm 1, without augmentation).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import prototypes
from pfljax.ops.losses import cross_entropy


class FDServer(NamedTuple):
    """Server state.

    Attributes:
      initial_params: The initial model of clients, which never changes.
      total: The sum over clients of their mean prediction for each class, value `[C, C]`, and the
        number of these clients, weight `[C]`; of the last round in which the class occurred.
      rounds: `[C]` int32, that round of each class; -1 for a class without predictions.
    """

    initial_params: core.Params
    total: core.Weighted
    rounds: jax.Array


class FDClient(NamedTuple):
    """Private state of a client.

    Attributes:
      params: Its model.
      sent: Its last upload, in the form of `FDServer.total`.
      round: `[]` int32, the round of that upload; -1 for none.
    """

    params: core.Params
    sent: core.Weighted
    round: jax.Array


@checked
def fd(
    task: core.Task,
    local: core.LocalTraining,
    *,
    lam: Annotated[float, core.at_least(0)] = 1.0,
    probabilities: bool = True,
    exclude_own: bool = True,
) -> core.Algorithm:
    """Private models that learn from the other clients' mean predictions for each class.

        theta_k <- local training on L_k - lam mean_i sum_c Q_{y_i,c} log softmax(f(x_i))_c
        P_kc = mean(softmax(f(x_i)): y_i = c) over the steps of the training
        Q_c = mean of P_jc over the clients j != k of the last cohort that have class c

    Args:
      task: The model and its loss, for classification; the loss is assumed to be the cross-entropy.
      local: The clients' local training.
      lam: Weight of the distillation, 0.1 to 2; 0 is local training.
      probabilities: Whether to share softmax probabilities; False shares logits, which then are
        targets that may be negative and do not sum to 1.
      exclude_own: Whether a client's own predictions are removed from the mean.

    Returns:
      The method; a client deploys its model. There is no global model.

    Notes:
      A class that the cohort lacks keeps its predictions; one of which no other client has sent
      any has no term. PFLlib is `probabilities=False` and `exclude_own=False`.
    """

    def no_sums(params):
        zero = jnp.zeros((task.num_classes, task.num_classes), tree.dtype(params))
        return core.Weighted(zero, zero[0])

    def init_server(population, key):
        params = task.init(key)
        return FDServer(params, no_sums(params), jnp.full(task.num_classes, -1, jnp.int32))

    def init_client(server, profile, key):
        params = server.initial_params
        return FDClient(params, no_sums(params), jnp.full((), -1, jnp.int32))

    def client_update(server, client, data, context):
        mine = exclude_own & (client.round == server.rounds)
        others = tree.subtract(
            server.total, jax.tree.map(lambda leaf: (leaf.T * mine).T, client.sent)
        )
        known = others.weight > 0.5  # A number of clients, to rounding.
        targets = others.value / jnp.where(known, others.weight, 1)[:, None]

        def objective(params, batch, key):
            outputs = task.predict(params, batch.inputs, batch.mask, key)
            taught = -jnp.sum(targets[batch.targets] * jax.nn.log_softmax(outputs), axis=-1)
            taught = core.mean_over(taught * known[batch.targets], batch.mask)
            return cross_entropy(outputs, batch) + lam * taught, outputs

        def gradient(params, total, batch, key):
            graded = jax.value_and_grad(objective, has_aux=True)
            (loss, outputs), slope = graded(params, batch, key)
            shared = jax.nn.softmax(outputs) if probabilities else outputs
            return loss, slope, prototypes.add_batch(total, shared, batch)

        nothing = prototypes.ClassSums(*no_sums(client.params))
        trained = core.descend(gradient, client.params, nothing, data, context, local)
        sent = trained.carry.weighted(by_size=False)
        state = FDClient(trained.params, sent, context.round)
        return core.ClientOutput(state=state, sum=sent, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        here = uploads.total.weight > 0
        total = jax.tree.map(
            lambda new, old: jnp.where(here, new.T, old.T).T, uploads.total, server.total
        )
        rounds = jnp.where(here, context.round, server.rounds)
        return server._replace(total=total, rounds=rounds)

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: client.params,
    )
