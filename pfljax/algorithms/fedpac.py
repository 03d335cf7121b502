"""FedPAC: a common body whose features keep to common prototypes, and heads mixed for each client.

Server: the body, the prototypes, the initial head. Client: its head.
Down: the body and the prototypes; after the round a mixed head. Up: the body's change and the mean
feature of each class, weighted (`sum`); the head and `C d + 1` numbers of its features (`each`).
Cost per client and round: one local training of the body, `head_epochs` cheap ones of the head, two
passes without gradients, a quadratic program of `cohort` unknowns (solved in `exchange`).

References:
  Xu, Tong, Huang, "Personalized Federated Learning with Feature Alignment and Classifier
  Collaboration", 2023, https://arxiv.org/abs/2306.11867.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedper import fedper
from pfljax.core import averaging, partition, prototypes, tree
from pfljax.errors import UserError


class FedPACServer(NamedTuple):
    """Attributes:
    average: the common body and its optimizer's state.
    initial_head: the head that a client starts with; never changes.
    prototypes: of the classes that some client had.
    """

    average: averaging.ModelServer
    initial_head: core.Model
    prototypes: prototypes.Prototypes


class HeadOffer(NamedTuple):
    """What a client shows to those who may take from its head.

    Attributes:
      head: as trained in this round.
      shares: `[C, d]`, the mean feature of a class times the class's share of the examples.
      variance: `[]`, how far `shares` is from its expectation: the squared error of this estimate.
    """

    head: core.Model
    shares: jax.Array
    variance: jax.Array


def head_weights(offers: HeadOffer, present: jax.Array, member: jax.Array) -> jax.Array:
    """Returns `[cohort]`, how much of each head goes into that of `member`.

        min_a  sum_j a_j^2 V_j + ||sum_j a_j (H_k - H_j)||^2   with a >= 0, sum_j a_j = 1

    Args:
      offers: the cohort's, stacked.
      present: `[cohort]` bool; the others get no weight.
      member: `[]`, the row of client k.
    """
    gaps = (offers.shares[member] - offers.shares).reshape(present.shape[0], -1)
    return minimize_on_simplex(gaps @ gaps.T + jnp.diag(offers.variance), present)


def minimize_on_simplex(matrix: jax.Array, allowed: jax.Array) -> jax.Array:
    """Returns the `a` `[n]` that minimizes `a^T matrix a` with `a >= 0` and `sum a = 1`.

    Up to its scale `a` is the `b >= 0` that minimizes `b^T Q b / 2 - sum b`, which an active set
    finds exactly: solve for the free entries alone, stop where one of them would turn negative and
    fix it at zero, else free the entry that gains most (Lawson and Hanson 1974, chapter 23).

    Args:
      matrix: `[n, n]`, symmetric and positive semidefinite.
      allowed: `[n]` bool; the other entries stay zero. Without any, all are zero.
    """
    size = allowed.shape[0]
    scale = jnp.sum(jnp.diag(matrix) * allowed) / jnp.maximum(jnp.sum(allowed), 1)
    accuracy = 10 * jnp.finfo(matrix.dtype).eps
    identity = jnp.eye(size, dtype=matrix.dtype)
    matrix = matrix / jnp.where(scale > 0, scale, 1) + accuracy * identity

    def step(state):
        entries, free, _, count = state
        system = jnp.where(free[:, None] & free, matrix, identity)
        target = jnp.linalg.solve(system, free.astype(matrix.dtype))
        sinking = free & (target <= 0)
        room = jnp.where(sinking, entries / jnp.where(sinking, entries - target, 1), 1)
        moved = jnp.where(free, entries + jnp.min(room) * (target - entries), 0)
        gain = jnp.where(allowed & ~free, 1 - matrix @ moved, -jnp.inf)
        entering = jnp.arange(size) == jnp.argmax(gain)
        blocked = jnp.any(sinking)
        free = jnp.where(
            blocked, free & ~(sinking & (room <= jnp.min(room))), free | (entering & (gain > 0))
        )
        done = ~blocked & (jnp.max(gain) <= size * accuracy)
        return jnp.maximum(moved, 0) * free, free, done, count + 1

    entries = jnp.zeros(size, matrix.dtype)
    state = (entries, jnp.zeros(size, bool), ~jnp.any(allowed), 0)
    entries, _, _, _ = jax.lax.while_loop(lambda s: ~s[2] & (s[3] < 4 * size + 4), step, state)
    total = jnp.sum(entries)
    return entries / jnp.where(total > 0, total, 1)


def fedpac(
    task: core.Task,
    local: core.LocalTraining,
    *,
    lam: float = 1.0,
    head_epochs: int = 1,
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
      task: model and loss, for classification.
      local: how clients train; its epochs are the body's.
      lam: weight of the pull to the prototypes, 0.1 to 10; 0 aligns nothing.
      head_epochs: passes over the examples for the head, 1 to 5; the paper takes 1.
      weight_by_size: average prototypes with weights `n_kc`; False weighs all clients with the
        class alike.
      server_optimizer: as in FedAvg, for the body.

    Returns:
      The method; a client's state is its head. There is no global model.

    Notes:
      A class that the cohort lacks keeps its prototype. The features are those of the examples that
      training sees, so without the last batch where it is left out. Heads are mixed all at once;
      PFLlib mixes one after the other in place, drops weights below 0.001 without making up for
      them, weighs prototypes alike, and pairs statistics with the wrong heads where the order of
      its clients is random. The paper leaves the pull's scale open; here it is a mean over the `d`
      features, as in PFLlib, and head and body train with one optimizer.
    """
    together = fedper(task, local, server_optimizer=server_optimizer)
    once = local._replace(epochs=1)

    def is_body(path):
        return not task.is_head(path)

    def init_server(key, population):
        if not task.num_classes or not task.num_features:
            raise UserError("FedPAC needs classes and a head on features; name another model.")
        server = together.init_server(key, population)
        dtype = jnp.result_type(*jax.tree.leaves(server.average.model))
        none = prototypes.none(task.num_classes, task.num_features, dtype)
        return FedPACServer(server.average, server.initial_head, none)

    def look(model, server, data, context):
        """A pass over the examples: the sums of each class, and of the squared norms."""

        def step(carry, batch, key):
            total, squares = carry
            features = task.features(model, batch.inputs)
            squares = squares + tree.squared_norm(features * batch.mask[:, None])
            return prototypes.add_batch(total, features, batch), squares

        nothing = prototypes.no_sums(server.prototypes)
        squares = jnp.zeros((), nothing.sums.dtype)
        return core.for_each_batch(step, (nothing, squares), data, context, once)

    def client_update(server, client, data, context):
        body = server.average.model
        start = partition.join(body, client)
        before, squares = look(start, server, data, context.child(2))
        examples = jnp.maximum(jnp.sum(before.counts), 1)
        shares = before.sums / examples
        spread = squares / examples - tree.squared_norm(shares)
        variance = jnp.maximum(spread, 0) / jnp.maximum(data.size, 1)

        def objective(model, batch, key):
            features = task.features(model, batch.inputs)
            pull = prototypes.pull(server.prototypes, features, batch)
            return task.loss(model, batch, key) + lam * pull

        tuned = core.train(
            task.loss,
            start,
            data,
            context.child(0),
            local,
            epochs=head_epochs,
            trainable=task.is_head,
        )
        trained = core.train(
            objective, tuned.model, data, context.child(1), local, trainable=is_body
        )
        new_head, new_body = partition.split(trained.model, task.is_head)
        after, _ = look(trained.model, server, data, context.child(3))
        change = core.weighted(tree.subtract(new_body, body), data.size)
        return core.ClientOutput(
            state=new_head,
            sum=(change, after.weighted(weight_by_size)),
            each=HeadOffer(new_head, shares, variance),
            metrics={**trained.metrics, "head_loss": tuned.metrics["loss"]},
        )

    def server_update(server, uploads, cohort, context):
        change, total = uploads.total
        return server._replace(
            average=averaging.step(server.average, change, server_optimizer),
            prototypes=prototypes.renew(server.prototypes, total),
        )

    def exchange(server, client, uploads, cohort, member, context):
        present = cohort.sizes > 0
        weights = head_weights(uploads.each, present, member)
        mixed = jax.tree.map(lambda heads: jnp.tensordot(weights, heads, 1), uploads.each.head)
        return tree.where(present[member], mixed, client)

    return together._replace(
        init_server=init_server,
        client_update=client_update,
        server_update=server_update,
        exchange=exchange,
    )
