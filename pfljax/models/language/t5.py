"""T5: an encoder and a decoder with biases of distances in place of positions."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pfljax.errors import UserError
from pfljax.models.attention import AttentionProduct, Tokens, require_divisible
from pfljax.models.ids import PADDING, Embedding
from pfljax.models.language.parts import Table, split_heads
from pfljax.models.layers import Dense
from pfljax.models.model import Model, from_flax

_BUCKETS, _FARTHEST = 32, 128
_Norm = functools.partial(nn.RMSNorm, epsilon=1e-6)


def distance_buckets(queries: int, keys: int, causal: bool) -> np.ndarray:
    """Returns the bucket of the distance from each query to each key, `[queries, keys]` int32.

    Half of the buckets of a direction are for single distances, the others for ranges that grow
    with the logarithm of the distance up to 128. Both directions have half of the 32 buckets,
    unless a query attends to earlier positions only.
    """
    distance = np.arange(keys)[None, :] - np.arange(queries)[:, None]
    buckets, first = _BUCKETS, 0
    if causal:
        distance = np.maximum(-distance, 0)
    else:
        buckets //= 2
        first = buckets * (distance > 0)
        distance = np.abs(distance)
    exact = buckets // 2
    ratio = np.log(np.maximum(distance, 1) / exact) / np.log(_FARTHEST / exact)
    far = exact + (ratio * (buckets - exact)).astype(int)
    return (first + np.where(distance < exact, distance, np.minimum(far, buckets - 1))).astype(
        np.int32
    )


class Attention(nn.Module):
    """Attention with unscaled products: `[B, T, d], [B, S, d] -> [B, T, d]`.

    Attributes:
      heads: Number of heads.
      causal: Whether a position attends to itself and earlier positions only.
      has_distances: Whether it has the biases of distances, which later blocks share.
    """

    heads: int
    causal: bool = False
    has_distances: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, others: jax.Array, mask: jax.Array | None, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the outputs and the bias `[1, heads, T, S]` of the distances."""
        dense = functools.partial(Dense, x.shape[-1], use_bias=False)
        if self.has_distances:
            table = Table(_BUCKETS, self.heads, name="relative_attention_bias")()
            buckets = distance_buckets(x.shape[1], others.shape[1], self.causal)
            bias = jnp.moveaxis(table[buckets], -1, 0)[None]
        query = split_heads(dense(name="q")(x), self.heads)
        key, value = (split_heads(dense(name=name)(others), self.heads) for name in ("k", "v"))
        product = AttentionProduct(self.causal, scale=1.0)
        mixed = product(query, key, value, mask, bias)
        return dense(name="o")(mixed.reshape(x.shape)), bias


class SelfAttention(nn.Module):
    """Self-attention after a normalization, with its residual connection."""

    heads: int
    causal: bool
    has_distances: bool

    @nn.compact
    def __call__(self, x, mask, bias):
        inner = _Norm(name="layer_norm")(x)
        attention = Attention(self.heads, self.causal, self.has_distances, name="SelfAttention")
        out, bias = attention(inner, inner, mask, bias)
        return x + out, bias


class CrossAttention(nn.Module):
    """Attention to the encoder's outputs after a normalization, with its residual connection."""

    heads: int

    @nn.compact
    def __call__(self, x, encoded, mask):
        attention = Attention(self.heads, name="EncDecAttention")
        return x + attention(_Norm(name="layer_norm")(x), encoded, mask, None)[0]


class Layers(nn.Module):
    """Two layers with ReLU between them, without biases.

    Attributes:
      hidden: Number of hidden units.
    """

    hidden: int

    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(Dense(self.hidden, use_bias=False, name="wi")(x))
        return Dense(x.shape[-1], use_bias=False, name="wo")(hidden)


class FeedForward(nn.Module):
    """A feed-forward network after a normalization, with its residual connection."""

    hidden: int

    @nn.compact
    def __call__(self, x):
        return x + Layers(self.hidden, name="DenseReluDense")(_Norm(name="layer_norm")(x))


class Block(nn.Module):
    """A block of the encoder, or with `encoded` of the decoder: `[B, T, d] -> [B, T, d]`."""

    heads: int
    hidden: int
    causal: bool
    has_distances: bool

    @nn.compact
    def __call__(self, x, mask, bias, encoded=None, encoded_mask=None):
        attention = SelfAttention(self.heads, self.causal, self.has_distances, name="layer.0")
        x, bias = attention(x, mask, bias)
        if encoded is not None:
            x = CrossAttention(self.heads, name="layer.1")(x, encoded, encoded_mask)
        number = 1 if encoded is None else 2
        return FeedForward(self.hidden, name=f"layer.{number}")(x), bias


class Stack(nn.Module):
    """The blocks of the encoder or of the decoder, and a normalization: `[B, T, d] -> [B, T, d]`.

    Attributes:
      layers: Number of blocks.
      heads: Number of heads of each attention.
      hidden: Number of hidden units of each feed-forward network.
      causal: Whether this is the decoder.
    """

    layers: int
    heads: int
    hidden: int
    causal: bool

    @nn.compact
    def __call__(self, x, mask, encoded=None, encoded_mask=None):
        (x, mask), bias = Tokens()(x, mask), None
        for number in range(self.layers):
            block = Block(self.heads, self.hidden, self.causal, number == 0, name=f"block.{number}")
            x, bias = block(x, mask, bias, encoded, encoded_mask)
        return _Norm(name="final_layer_norm")(x), mask


class Transformer(nn.Module):
    """Encoder and decoder: `{'source': [B, S], 'target': [B, T]} -> [B, T, width]`.

    The attributes are arguments of `t5`.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int

    @nn.compact
    def __call__(self, ids: Mapping[str, jax.Array]) -> jax.Array:
        source, target = ids["source"], ids["target"]
        shared = Embedding(self.vocabulary, self.width, name="shared")
        sizes = self.layers, self.heads, 4 * self.width
        encoded, mask = Stack(*sizes, causal=False, name="encoder")(
            shared(source), source != PADDING
        )
        decoder = Stack(*sizes, causal=True, name="decoder")
        return decoder(shared(target), None, encoded, mask)[0][:, -target.shape[1] :]


class ScaledProducts(nn.Module):
    """Products with the embedding, divided by sqrt(d): `[B, T, d] -> [B, T, vocabulary]`."""

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        return (x * x.shape[-1] ** -0.5) @ embedding.T


def t5(
    input_shape: Mapping[str, tuple[int, ...]],
    num_classes: int,
    *,
    vocabulary: int | Mapping[str, int],
    width: int = 512,
    layers: int = 6,
    heads: int = 8,
) -> Model:
    """T5, with the arrays and names of its published weights: `[B, T] -> [B, T, vocabulary]`.

    An example has two texts, the 'source', whose padding is masked, and the 'target', the tokens
    that precede those to be predicted, of which the first is 0. The outputs are products with the
    embedding, so that the head has no arrays of its own. 32,128 ids: 60,506,624 parameters.

    Args:
      input_shape: `{'source': (S,), 'target': (T,)}`.
      num_classes: Number of ids that are predicted, the vocabulary.
      vocabulary: Number of ids, the same for both texts.
      width: The width of all blocks.
      layers: Number of blocks of the encoder, and of the decoder.
      heads: Number of heads of each attention.

    References:
      Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou, Li, Liu, "Exploring the Limits of
      Transfer Learning with a Unified Text-to-Text Transformer", 2020,
      https://arxiv.org/abs/1910.10683.
    """
    texts = {"source", "target"}
    sizes = set(vocabulary.values()) if isinstance(vocabulary, Mapping) else {vocabulary}
    if not isinstance(input_shape, Mapping) or set(input_shape) != texts or sizes != {num_classes}:
        raise UserError(
            "The model t5 reads examples of two texts, 'source' and 'target', whose vocabulary is "
            f"that of the {num_classes} outputs; choose another model."
        )
    require_divisible("t5", width, heads)
    body = Transformer(num_classes, width, layers, heads)
    reads_ids = dict.fromkeys(sorted(texts), True)
    tied = ("shared", "embedding")
    return from_flax(body, ScaledProducts(), input_shape, reads_ids=reads_ids, tied=tied)
