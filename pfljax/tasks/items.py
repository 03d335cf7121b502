"""Examples of several items: a network of a single item is applied to all of them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pfljax.errors import UserError
from pfljax.models.model import Model


def of_items(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Makes a function of items `[B, ...]` one of examples `[B, items, ...]`.

    Args:
      function: `(params, items, mask=None, key=None) -> [B, ...]`, such as `Model.features`.
    """

    def apply(params, examples, mask=None, key=None):
        batch, items = jax.tree.leaves(examples)[0].shape[:2]
        flat = jax.tree.map(lambda x: x.reshape(batch * items, *x.shape[2:]), examples)
        repeated = None if mask is None else jnp.repeat(mask, items)
        out = function(params, flat, repeated, key)
        return out.reshape(batch, items, *out.shape[1:])

    return apply


def require_no_statistics(model: Model, task: str) -> None:
    """Raises a `UserError` for a network with batch normalization.

    Args:
      model: Network.
      task: The task with its article, the subject of the sentence.
    """
    if model.observe is not None:
        raise UserError(f"{task} takes no model with batch normalization; choose another model.")
