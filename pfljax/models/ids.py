"""What networks of ids share: embeddings, the padding, and what they ask of a data set."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pfljax.errors import UserError

# The id with which a text ends that is shorter than the array that holds it.
PADDING = 0


class Embedding(nn.Module):
    """A row for each id: `[B, ...] -> [B, ..., width]`.

    Attributes:
      vocabulary: ids.
      width: entries of a row.
      initial: how the rows start; PyTorch's default is the normal distribution.
    """

    vocabulary: int
    width: int
    initial: nn.initializers.Initializer = nn.initializers.normal(1.0)

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        table = self.param("embedding", self.initial, (self.vocabulary, self.width))
        return jnp.take(table, ids, axis=0, mode="clip")


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Means where `mask` `[B, T]` is True: `[B, T, d] -> [B, d]`, 0 where it nowhere is."""
    weight = mask.astype(x.dtype)[..., None]
    return jnp.sum(x * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1)


def require_text(name: str, input_shape: tuple[int, ...], vocabulary: int) -> None:
    """Raises a `UserError` unless examples are texts `[T]` of one vocabulary."""
    if len(input_shape) != 1 or not isinstance(vocabulary, int):
        raise UserError(
            f"The model {name} reads texts of one vocabulary, and an example here has the shape "
            f"{input_shape} and the vocabulary {vocabulary}; name another model."
        )
