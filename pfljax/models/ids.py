"""Common parts of networks that read ids: embeddings, padding, and checks of the inputs."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pfljax.errors import UserError

# The id that pads texts at the end.
PADDING = 0


class Embedding(nn.Module):
    """A row of weights for each id: `[B, ...] -> [B, ..., width]`.

    Attributes:
      vocabulary: Number of ids.
      width: The width of a row.
      initial: The initializer of the rows; PyTorch's default is the normal distribution.
    """

    vocabulary: int
    width: int
    initial: nn.initializers.Initializer = nn.initializers.normal(1.0)

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        table = self.param("embedding", self.initial, (self.vocabulary, self.width))
        return jnp.take(table, ids, axis=0, mode="clip")


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Means where `mask` `[B, T]` is True: `[B, T, d] -> [B, d]`, 0 if it is False everywhere."""
    weight = mask.astype(x.dtype)[..., None]
    return jnp.sum(x * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1)


def require_text(name: str, input_shape: tuple[int, ...], vocabulary: int) -> None:
    """Raises a `UserError` unless examples are texts `[T]` of one vocabulary."""
    if len(input_shape) != 1 or not isinstance(vocabulary, int):
        raise UserError(
            f"The model {name} reads texts of one vocabulary, but an example has the shape "
            f"{input_shape} and the vocabulary {vocabulary}; choose another model."
        )
