"""A contrastive loss between features and prototypes, of one client or of several at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core.client_data import Batch
from pfljax.ops.prototypes import Prototypes


def loss(
    features: jax.Array,
    batch: Batch,
    known: Prototypes,
    tau: float | jax.Array,
    own_class: bool | jax.Array,
) -> jax.Array:
    """Returns `[...]`, the mean over the batch's real examples for each set of prototypes.

        log sum_c exp(u_i P_c / tau) - u_i P_{y_i} / tau

    An example has no loss if its class has no prototype, or if no other class has one.

    Args:
      features: `[B, d]`, the features `u`.
      batch: The examples.
      known: The prototypes `P`, `[..., C, d]` and `[..., C]`; the sum is over their classes.
      tau: The temperature.
      own_class: Whether the sum has the class of the example.
    """
    products = jnp.einsum("bd,...cd->...bc", features, known.means) / tau
    target = jax.nn.one_hot(batch.targets, known.means.shape[-2], dtype=bool)
    seen = known.seen[..., None, :]
    rivals = seen & (own_class | ~target)
    counted = jnp.any(seen & target, axis=-1) & jnp.any(rivals, axis=-1)
    rivals |= ~counted[..., None]  # Any finite sum, which is not used.
    total = jax.nn.logsumexp(jnp.where(rivals, products, -jnp.inf), axis=-1)
    losses = jnp.where(counted, total - jnp.sum(products * target, axis=-1), 0)
    return jnp.sum(losses * batch.mask, axis=-1) / jnp.maximum(jnp.sum(batch.mask), 1)
