"""Common parts of GPT-2, BERT and T5."""

from __future__ import annotations

import flax.linen as nn
import jax


class Table(nn.Module):
    """Rows of weights for positions, types of tokens or distances: `[rows, width]`.

    Attributes:
      rows: Number of rows.
      width: The width of a row.
    """

    rows: int
    width: int

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("table", nn.initializers.normal(0.02), (self.rows, self.width))


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """Returns rows as one row for each head: `[B, T, h d] -> [B, T, h, d]`."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
