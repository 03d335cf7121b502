"""Common parts of GPT-2, BERT and T5."""

from __future__ import annotations

import flax.linen as nn
import jax

from pfljax.errors import UserError


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


def rows_of_positions(table: jax.Array, first: int, count: int) -> jax.Array:
    """Returns the rows `[count, width]` of positions, counted from `first`.

    Raises:
      UserError: The table has fewer rows.
    """
    if first + count > table.shape[0]:
        raise UserError(
            f"config.model.positions is {table.shape[0]}, and texts have {first + count} positions "
            "with their prompts and prefixes; raise config.model.positions."
        )
    return table[first : first + count]


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """Returns rows as one row for each head: `[B, T, h d] -> [B, T, h, d]`."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
