"""GPT-2: a causal Transformer whose outputs are products with its embedding."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax

from pfljax.errors import UserError
from pfljax.models.attention import AttentionProduct, Tokens, require_divisible
from pfljax.models.ids import Embedding, require_text
from pfljax.models.language.parts import Table, rows_of_positions, split_heads
from pfljax.models.layers import Dense
from pfljax.models.model import Model, from_flax

_SMALL = nn.initializers.normal(0.02)
_Norm = functools.partial(nn.LayerNorm, epsilon=1e-5)


class Attention(nn.Module):
    """Causal self-attention: `[B, T, d] -> [B, T, d]`.

    Attributes:
      heads: Number of heads.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        projected = Dense(3 * width, kernel_init=_SMALL, name="c_attn")(x)
        query, key, value = (
            split_heads(projected[..., i * width : (i + 1) * width], self.heads) for i in range(3)
        )
        mixed = AttentionProduct(causal=True)(query, key, value, None, None)
        return Dense(width, kernel_init=_SMALL, name="c_proj")(mixed.reshape(x.shape))


class FeedForward(nn.Module):
    """Two layers with the approximate GELU between them: `[B, T, d] -> [B, T, d]`.

    Attributes:
      hidden: Number of hidden units.
    """

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.gelu(Dense(self.hidden, kernel_init=_SMALL, name="c_fc")(x))
        return Dense(x.shape[-1], kernel_init=_SMALL, name="c_proj")(hidden)


class Block(nn.Module):
    """Attention and feed-forward network, each after a normalization: `[B, T, d] -> [B, T, d]`.

    Attributes:
      heads: Number of heads.
      hidden: Number of hidden units of the feed-forward network.
    """

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + Attention(self.heads, name="attn")(_Norm(name="ln_1")(x))
        return x + FeedForward(self.hidden, name="mlp")(_Norm(name="ln_2")(x))


class Decoder(nn.Module):
    """Embeddings of tokens and positions, blocks, and a normalization: `[B, T] -> [B, T, width]`.

    The attributes are arguments of `gpt2`.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    positions: int
    first_position: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = Embedding(self.vocabulary, self.width, _SMALL, name="wte")(ids)
        x, _ = Tokens()(x, None)
        table = Table(self.positions, self.width, name="wpe")()
        x = x + rows_of_positions(table, self.first_position, x.shape[1])
        for number in range(self.layers):
            x = Block(self.heads, 4 * self.width, name=f"h.{number}")(x)
        return _Norm(name="ln_f")(x)[:, -ids.shape[1] :]


class Products(nn.Module):
    """Products with the embedding: `[B, T, d] -> [B, T, vocabulary]`."""

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        return x @ embedding.T


def gpt2(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    vocabulary: int,
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    positions: int = 1024,
    prefix_tokens: int | None = None,
) -> Model:
    """GPT-2, with the arrays and names of its published weights: `[B, T] -> [B, T, vocabulary]`.

    The outputs are products with the embedding, so that the head has no arrays of its own.
    50,257 ids: 124,439,808 parameters.

    Args:
      input_shape: `(T,)`.
      num_classes: Number of ids that are predicted, the vocabulary.
      vocabulary: Number of ids.
      width: The width of all blocks.
      layers: Number of blocks.
      heads: Number of heads of each attention.
      positions: Number of rows of the table of positions; `T` and the tokens of a prompt at most.
      prefix_tokens: Number of tokens of a prefix that peft has trained, which shifts the positions
        of the text by it; None for no shift.

    References:
      Radford, Wu, Child, Luan, Amodei, Sutskever, "Language Models are Unsupervised Multitask
      Learners", 2019.
    """
    require_text("gpt2", input_shape, vocabulary)
    require_divisible("gpt2", width, heads)
    if num_classes != vocabulary:
        raise UserError(
            f"The model gpt2 predicts its {vocabulary} input tokens, but the data set has "
            f"{num_classes} classes; choose another model, such as bert."
        )
    body = Decoder(vocabulary, width, layers, heads, positions, prefix_tokens or 0)
    tied = ("wte", "embedding")
    return from_flax(body, Products(), input_shape, reads_ids=True, tied=tied)
