"""A network for histories of items: what a client chooses next, how it rates it, and its tags."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pfljax.errors import UserError
from pfljax.models.attention import Blocks, require_divisible
from pfljax.models.ids import PADDING, Embedding
from pfljax.models.layers import Dense, Offset
from pfljax.models.model import Model, from_flax

_SMALL = nn.initializers.normal(0.1)


class Items(nn.Module):
    """Vector and bias of items: `[B, S, 2 + columns] -> [B, S, width], [B, S, 1]`.

        e_i = v_i + mean of a_j over the attributes j of item i

    Attributes:
      items: Number of ids of items, including that of none.
      attributes: Number of ids of attributes, including that of none.
      width: The width of a vector.
    """

    items: int
    attributes: int
    width: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        vectors = Embedding(self.items, self.width, _SMALL, name="vectors")(ids[..., 0])
        biases = Embedding(self.items, 1, nn.initializers.zeros, name="biases")(ids[..., 0])
        columns = ids[..., 2:]
        of_columns = Embedding(self.attributes, self.width, _SMALL, name="attributes")(columns)
        weight = (columns != PADDING).astype(of_columns.dtype)[..., None]
        described = jnp.sum(of_columns * weight, axis=-2)
        return vectors + described / jnp.maximum(jnp.sum(weight, axis=-2), 1), biases


class HistoryEncoder(nn.Module):
    """A client's state after its history, and the items: `[B, S, 2 + columns] -> [B, 1 + S, d]`.

    The state is the output at the last position of Transformer blocks over the last items, in which
    only items with a rating are attended to. `d = width + 1`, as a bias follows each vector.

    Attributes:
      items: Number of ids of items, including that of none.
      levels: Number of ids of ratings, including that of none.
      attributes: Number of ids of attributes, including that of none.
      width: The width of a vector.
      history: Number of the last items that are read as history.
      layers: Number of blocks.
      heads: Number of heads of each attention.
    """

    items: int
    levels: int
    attributes: int
    width: int
    history: int
    layers: int
    heads: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        if ids.shape[1] < self.history:
            raise UserError(
                f"config.model.history is {self.history}, but examples have {ids.shape[1]} items; "
                "lower it to the length of the history in the examples."
            )
        vectors, biases = Items(self.items, self.attributes, self.width, name="items")(ids)
        ratings = ids[:, -self.history :, 1]
        x = vectors[:, -self.history :] + Embedding(self.levels, self.width, _SMALL)(ratings)
        x = Offset(2, _SMALL, name="positions")(x)
        x = Blocks(self.layers, self.heads)(x, ratings != PADDING)
        state = nn.LayerNorm(epsilon=1e-5)(x[:, -1:])
        state = jnp.concatenate([state, jnp.zeros_like(state[..., :1])], axis=-1)
        return jnp.concatenate([state, jnp.concatenate([vectors, biases], axis=-1)], axis=1)


class Predictions(nn.Module):
    """Scores of items, the rating of the first one, and tags: `[B, 1 + S, d] -> [B, S + 1 + tags]`.

        score_i = <W h, e_i> + b_i;   rating = linear(h e_0, h, e_0);   tags = linear(h)

    with the state h and the items' vectors e and biases b.

    Attributes:
      tags: Number of tags.
    """

    tags: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        state, items, biases = x[:, 0, :-1], x[:, 1:, :-1], x[:, 1:, -1]
        query = Dense(state.shape[-1], name="query")(state)
        scores = jnp.einsum("bsd,bd->bs", items, query) + biases
        first = items[:, 0]
        pair = jnp.concatenate([state * first, state, first], axis=-1)
        rating = Dense(1, name="rating")(pair)
        return jnp.concatenate([scores, rating, Dense(self.tags, name="tags")(state)], axis=-1)


def unimp(
    input_shape: tuple[int, ...],
    tags: int,
    *,
    vocabulary: int | tuple[int, ...],
    width: int = 16,
    history: int = 16,
    layers: int = 1,
    heads: int = 2,
) -> Model:
    """UniMP reduced: one network of a client's history for three tasks, `[B, S, 2 + columns]` ids.

    An item is the sum of a vector of its own and the mean of vectors of its attributes (tags and
    hashed words), which stand in for a language model; Transformer blocks read the items of the
    history, each with its rating. The pictures of items, the pre-trained language model, and texts
    as outputs are left out: outputs are scores `[B, S]` of all items, a rating `[B, 1]` of the
    first one, and logits of the tags `[B, tags]`, concatenated.

    With fewer positions of `history` than examples have, the oldest items are not read; those of
    items without a rating are not attended to.

    9,724 films, 572 attributes, 59 tags, 48 items: 179,545 parameters, 1,324 of them the head.

    References:
      Wei, Jin, Wang et al., "Towards Unified Multi-Modal Personalization: Large Vision-Language
      Models for Generative Recommendation and Beyond", 2024, https://arxiv.org/abs/2403.10667.
    """
    sizes = (vocabulary,) if isinstance(vocabulary, int) else tuple(vocabulary)
    fits = isinstance(input_shape, tuple) and len(input_shape) == 1
    if not fits or input_shape[0] != len(sizes) or len(sizes) < 3 or len(set(sizes[2:])) > 1:
        raise UserError(
            "The model unimp reads items of an id, a rating and attributes of one vocabulary, but "
            f"an item has the shape {input_shape} and ids up to {sizes}; choose another model."
        )
    require_divisible("unimp", width, heads)
    if not isinstance(history, int) or history < 1:
        raise UserError(f"config.model.history is {history}; it must be a whole number above 0.")
    body = HistoryEncoder(sizes[0], sizes[1], sizes[2], width, history, layers, heads)
    return from_flax(body, Predictions(tags), (history, *input_shape), reads_ids=True)
