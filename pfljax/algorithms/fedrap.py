"""FedRAP: a client's features are the sum of those of a common body and of a personal one.

Server: the common body `C`. Client: its own model, of body `D_k` and head `h_k`.
Down: `C`. Up: the change of `C`, with uniform weights (`sum`); `D_k` and `h_k` never leave the
client.
Cost per client and round: one local training, with two bodies and their sum.

References:
  Li, Long, Zhou, "Federated Recommendation with Additive Personalization", 2023,
  https://arxiv.org/abs/2301.09109.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import join_params, split_params
from pfljax.ops import averaging, losses

_ZERO = 1e-4  # Entries of `C` up to this absolute value count as zero, as in the authors' code.


@checked
def fedrap(
    task: core.Task,
    local: core.LocalTraining,
    *,
    lam: Annotated[float, core.at_least(0)] = 0.1,
    mu: Annotated[float, core.at_least(0)] = 0.001,
    ramp: Annotated[float, core.above(0)] = 10.0,
    body_factor: Annotated[float, core.above(0)] = 1.0,
    tolerance: Annotated[float, core.at_least(0)] = 1e-4,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Additive personalization, where the two bodies differ and the common one is sparse.

        outputs_k(x) = h_k(C(x) + D_k(x));   s = tanh((round + 1) / ramp)
        (C_k, D_k, h_k) <- local training from (C, D_k, h_k) on
            L_k - lam s mean (D_k(x) - C_k(x))^2 + mu s mean |C_k(x)|
        C <- C + server_optimizer(-mean_k (C_k - C))

    In a matrix factorization, `C(x)` and `D_k(x)` are the rows of item x in two tables, and `h_k`
    is the user.

    Args:
      task: The model and its loss; a ranking or ratings with `matrix_factorization`, or any model
        with body and head.
      local: The clients' local training.
      lam: Weight of the difference between the two bodies, 0 to 1 (authors' code: 0.1). The term
        has no lower bound, so that a large weight or learning rate diverges.
      mu: Weight of the sparsity of `C`, 0.00001 to 0.1 (authors' code for MovieLens-100K: 0.001).
      ramp: Number of rounds over which both weights grow, to 76 % (paper: 10), 1 to 100; near 0,
        they are constant.
      body_factor: Learning rate of the two bodies, as a factor of the clients' rate, 1 to 100; more
        for large batches of items, each with few examples (authors' code: 10,000,000).
      tolerance: Local training ends after an epoch in which the mean objective of the round changed
        by less than this fraction, 0 to 0.01; 0 runs all local epochs.
      server_optimizer: As in FedAvg, for `C`.

    Returns:
      The method; a client's state is its own model, and it deploys both bodies. There is no global
      model. The metric `sparsity` is the fraction of entries of the received `C` that are at most
      0.0001.

    Notes:
      In the authors' code the weights that grow are computed, but the loss uses constant ones. The
      paper sums both terms over the whole tables; here, as in the code, they are means over the
      features of the batch, in which frequent items count more. The sums over tables would be
      `lam` and `mu` times the number of entries. The loss is the task's: that of a ranking is
      pairwise, where the paper has the cross-entropy of chosen items and of others; the features of
      `matrix_factorization` contain a bias of each item. Negative samples are those of the data
      set, and not drawn anew in each round. The code multiplies learning rates by 0.95 after each
      step and by 0.97 after each round (`LocalTraining.step_schedule` and `schedule`). Every client
      draws its own initial model; in the code all start from one. The reported loss is `L_k`
      without the two terms.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task)

    def scaled(updates, params=None):
        """Multiplies the updates of both bodies by `body_factor`."""
        head, body = split_params(updates["own"], task.is_head)
        common, body = (tree.scale(body_factor, part) for part in (updates["common"], body))
        return {"common": common, "own": join_params(body, head)}

    optimizer = optax.chain(local.optimizer, optax.stateless(scaled))

    def init_server(population, key):
        _, body = split_params(task.init(key), task.is_head)
        return averaging.init(body, server_optimizer)

    def features_of(models, inputs, *mode):
        """Returns `[B, ...]` each, the features of the common body and of the client's own."""
        return (task.features(models[name], inputs, *mode) for name in ("common", "own"))

    def has_settled(before, after):
        """Whether the mean objective changed by less than `tolerance` since an epoch before."""
        last, mean = (total / jnp.maximum(rows, 1) for total, rows in (before, after))
        return (before[1] > 0) & (jnp.abs(mean - last) < tolerance * jnp.abs(last))

    def client_update(server, client, data, context):
        strength = jnp.tanh((context.round + 1) / ramp)

        def objective(models, batch, key):
            common, own = features_of(models, batch.inputs, batch.mask, key)
            outputs = task.head(models["own"], common + own, batch.mask, key)
            loss = losses.of_outputs(task, outputs, batch)
            weight = jnp.asarray(strength, common.dtype)
            apart, size = (
                core.mean_over(jnp.mean(entries, axis=tuple(range(1, entries.ndim))), batch.mask)
                for entries in (jnp.square(own - common), jnp.abs(common))
            )
            return loss + weight * (mu * size - lam * apart), loss

        def gradient(models, carry, batch, key):
            (total, loss), slope = jax.value_and_grad(objective, has_aux=True)(models, batch, key)
            rows = jnp.sum(batch.mask, dtype=jnp.int32)
            return loss, slope, (carry[0] + rows * total, carry[1] + rows)

        start = {"common": server.params, "own": client}
        nothing = jnp.zeros((), jnp.result_type(float)), jnp.zeros((), jnp.int32)
        trained = core.descend(
            gradient, start, nothing, data, context, local, optimizer=optimizer, until=has_settled
        )
        change = tree.subtract(trained.params["common"], server.params)
        zeros = sum(jnp.sum(jnp.abs(leaf) <= _ZERO) for leaf in jax.tree.leaves(server.params))
        return core.ClientOutput(
            state=trained.params["own"],
            sum=core.weighted(change, 1.0),
            metrics={**trained.metrics, "sparsity": zeros / tree.size(server.params)},
        )

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: task.init(key),
        client_update=client_update,
        server_update=lambda server, uploads, cohort, context: averaging.apply(
            server, uploads.total, server_optimizer
        ),
        personalize=lambda server, client, data, context: {"common": server.params, "own": client},
        predict=lambda params, inputs, key: task.head(
            params["own"], sum(features_of(params, inputs))
        ),
    )
