"""BERT: a Transformer encoder whose features are those of the first token.

`bert` is the network. If its lower blocks are frozen, `bert_activations` computes what they return
once for each text, and `bert_upper` is the rest of the network, which reads that.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from pfljax.core import Params
from pfljax.core.params import split_params
from pfljax.errors import UserError
from pfljax.models.attention import AttentionProduct, Tokens, require_divisible
from pfljax.models.ids import PADDING, Embedding, require_text
from pfljax.models.language.parts import Table, rows_of_positions, split_heads
from pfljax.models.layers import Dense
from pfljax.models.model import Model, from_flax

_SMALL = nn.initializers.normal(0.02)
_Dense = functools.partial(Dense, kernel_init=_SMALL)
_Norm = functools.partial(nn.LayerNorm, epsilon=1e-12)


class Embeddings(nn.Module):
    """Embeddings of tokens, positions and the first segment: `[B, T] -> [B, T, width]`.

    The attributes are arguments of `bert`.
    """

    vocabulary: int
    width: int
    positions: int

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = Embedding(self.vocabulary, self.width, _SMALL, name="word_embeddings")(ids)
        x, mask = Tokens()(x, mask)
        positions = Table(self.positions, self.width, name="position_embeddings")()
        segments = Table(2, self.width, name="token_type_embeddings")()
        x = x + rows_of_positions(positions, 0, x.shape[1]) + segments[0]
        return _Norm(name="LayerNorm")(x), mask


class SelfAttention(nn.Module):
    """Queries, keys and values of each head, and their product: `[B, T, d] -> [B, T, d]`.

    Attributes:
      heads: Number of heads.
      outputs: Number of tokens, from the first one, that have an output; None for all.
    """

    heads: int
    outputs: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        own = x[:, : self.outputs]
        query, key, value = (
            split_heads(_Dense(x.shape[-1], name=name)(tokens), self.heads)
            for name, tokens in (("query", own), ("key", x), ("value", x))
        )
        return AttentionProduct()(query, key, value, mask, None).reshape(own.shape)


class Output(nn.Module):
    """A layer, the residual connection and a normalization: `[B, T, k], [B, T, d] -> [B, T, d]`."""

    @nn.compact
    def __call__(self, hidden: jax.Array, x: jax.Array) -> jax.Array:
        return _Norm(name="LayerNorm")(x + _Dense(x.shape[-1], name="dense")(hidden))


class Attention(nn.Module):
    """Attention with its output layer: `[B, T, d] -> [B, T, d]`; the attributes as above."""

    heads: int
    outputs: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        mixed = SelfAttention(self.heads, self.outputs, name="self")(x, mask)
        return Output(name="output")(mixed, x[:, : self.outputs])


class Intermediate(nn.Module):
    """The first layer of a feed-forward network: `[B, T, d] -> [B, T, features]`.

    Attributes:
      features: Number of hidden units.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.gelu(_Dense(self.features, name="dense")(x), approximate=False)


class Block(nn.Module):
    """Attention and feed-forward network, normalized after each: `[B, T, d] -> [B, T, d]`."""

    heads: int
    outputs: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = Attention(self.heads, self.outputs, name="attention")(x, mask)
        hidden = Intermediate(4 * x.shape[-1], name="intermediate")(x)
        return Output(name="output")(hidden, x)


class Blocks(nn.Module):
    """Blocks in turn: `[B, T, d] -> [B, T, d]`.

    Attributes:
      layers: Number of blocks of the whole network.
      heads: Number of heads of each attention.
      first: Number of blocks that are left out before.
      outputs: Number of tokens, from the first one, that the last block returns; None for all. Of
        the others it computes keys and values only.
    """

    layers: int
    heads: int
    first: int = 0
    outputs: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        for number in range(self.first, self.layers):
            outputs = self.outputs if number == self.layers - 1 else None
            x = Block(self.heads, outputs, name=f"layer.{number}")(x, mask)
        return x


class Pooler(nn.Module):
    """A layer on the first token: `[B, T, d] -> [B, d]`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(_Dense(x.shape[-1], name="dense")(x[:, 0]))


class Encoder(nn.Module):
    """Embeddings, blocks and pooler: `[B, T] -> [B, width]`.

    Attributes:
      vocabulary: As all but the last attribute, an argument of `bert`.
      pools: Whether the pooler follows; otherwise the outputs are those of all tokens,
        `[B, T, width]`, zeros for padding.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    positions: int
    pools: bool = True

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        embeddings = Embeddings(self.vocabulary, self.width, self.positions, name="embeddings")
        x, mask = embeddings(ids, ids != PADDING)
        outputs = 1 if self.pools else None
        x = Blocks(self.layers, self.heads, outputs=outputs, name="encoder")(x, mask)
        return Pooler(name="pooler")(x) if self.pools else x * mask[..., jnp.newaxis]


class Upper(nn.Module):
    """The other blocks and the pooler: `[B, T, width] -> [B, width]`; arguments of `bert_upper`."""

    layers: int
    heads: int
    first: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mask = jnp.any(x != 0, axis=-1)
        blocks = Blocks(self.layers, self.heads, self.first, outputs=1, name="encoder")
        return Pooler(name="pooler")(blocks(x, mask))


def bert(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    vocabulary: int,
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    positions: int = 512,
) -> Model:
    """BERT, with the arrays and names of its published weights: `[B, T] -> [B, width]`.

    All tokens belong to the first segment. With a prompt, the features are those of its first
    token, as in other libraries. 30,522 ids, 2 classes: 109,483,778 parameters.

    Args:
      input_shape: `(T,)`.
      num_classes: Number of outputs.
      vocabulary: Number of ids.
      width: The width of all blocks.
      layers: Number of blocks.
      heads: Number of heads of each attention.
      positions: Number of rows of the table of positions; `T` and the tokens of a prompt at most.

    References:
      Devlin, Chang, Lee, Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for
      Language Understanding", 2019, https://arxiv.org/abs/1810.04805.
    """
    require_text("bert", input_shape, vocabulary)
    require_divisible("bert", width, heads)
    body = Encoder(vocabulary, width, layers, heads, positions)
    return from_flax(body, _Dense(num_classes), input_shape, reads_ids=True)


def bert_activations(params: Params, ids: jax.Array, *, layers: int, heads: int) -> jax.Array:
    """Returns `[B, T, width]`, what the first blocks of `bert` return; zeros for padding.

    With `pfljax.data.precompute`, it is computed once for each text of a data set:

        lower = functools.partial(bert_activations, base, layers=5, heads=12)
        data = precompute(data, jax.jit(lower))

    Args:
      params: The params of `bert`.
      ids: `[B, T]` int32, ids of tokens.
      layers: Number of blocks to apply; those after it are `bert_upper`'s.
      heads: Number of heads of each attention.
    """
    names = {"embeddings", *(f"layer.{number}" for number in range(layers))}
    embeddings = params["body"]["embeddings"]
    vocabulary, width = embeddings["word_embeddings"]["embedding"].shape
    positions, _ = embeddings["position_embeddings"]["table"].shape
    used, _ = split_params(params["body"], lambda path: bool(names & set(path)))
    lower = Encoder(vocabulary, width, layers, heads, positions, pools=False)
    return lower.apply({"params": used}, ids)


def bert_upper(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    first: int,
    layers: int = 12,
    heads: int = 12,
) -> Model:
    """The last blocks of BERT with its pooler, on activations: `[B, T, width] -> [B, width]`.

    The params are those of `bert` without the embeddings and the first blocks, so that a file of
    BERT's can be its base. A row of zeros is padding. The last one of 12 blocks, width 768, 2
    classes: 7,680,002 parameters.

    Args:
      input_shape: `(T, width)`.
      num_classes: Number of outputs.
      first: Number of blocks that are left out; the activations are what they return.
      layers: Number of blocks of the whole network.
      heads: Number of heads of each attention.

    Raises:
      UserError: The inputs are no activations, or no block is left.
    """
    if len(input_shape) != 2:
        raise UserError(
            "The model bert_upper reads activations [T, width] of each example, but the data set "
            f"has inputs of shape {input_shape}; precompute them with bert_activations."
        )
    if not first < layers:
        raise UserError(
            f"config.model.first is {first} and config.model.layers is {layers}: no block is left; "
            "lower config.model.first."
        )
    require_divisible("bert_upper", input_shape[-1], heads)
    return from_flax(Upper(layers, heads, first), _Dense(num_classes), input_shape)
