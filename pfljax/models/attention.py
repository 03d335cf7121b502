"""Transformers: the blocks, a text encoder, a language model, and a vision Transformer."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pfljax.errors import UserError
from pfljax.models.ids import PADDING, Embedding, masked_mean, require_text
from pfljax.models.layers import Dense, Offset
from pfljax.models.model import ADAPTER, Model, from_flax

# Low enough for a weight of zero, but finite, so that a fully masked row does not become NaN.
_BARRED = -1e9


class KeyValueAdapter(nn.Module):
    """What an adapter adds to keys and values: `[B, T, d] -> [B, T, 2 d]`.

        (P_k, P_v) = scale (tanh(x W_down + b_down) W_up + b_up)

    Attributes:
      width: Number of hidden units.
      scale: Factor on the result.
    """

    width: int
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(Dense(self.width)(x))
        return self.scale * Dense(2 * x.shape[-1])(hidden)


class Attention(nn.Module):
    """Multi-head self-attention: `[B, T, d] -> [B, T, d]`.

        (q, k, v) = x W + b,   with an adapter (q, k + P_k, v + P_v)

    Attributes:
      heads: Number of heads, among which `d` is divided.
      causal: Whether a position attends to itself and earlier positions only.
      adapter_width: Number of hidden units of the adapter of keys and values; 0 for no adapter.
      adapter_scale: Factor on what the adapter adds.
    """

    heads: int
    causal: bool = False
    adapter_width: int = 0
    adapter_scale: float = 1.5

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        batch, steps, width = x.shape
        projected = Dense(3 * width)(x)
        if self.adapter_width:
            added = KeyValueAdapter(self.adapter_width, self.adapter_scale, name=ADAPTER)(x)
            query, others = projected[..., :width], projected[..., width:]
            projected = jnp.concatenate([query, others + added], axis=-1)
        projected = projected.reshape(batch, steps, 3, self.heads, width // self.heads)
        query, key, value = (projected[:, :, i] for i in range(3))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * (width // self.heads) ** -0.5
        if mask is not None:
            scores = jnp.where(mask[:, None, None, :], scores, _BARRED)
        if self.causal:
            scores = jnp.where(np.tri(steps, dtype=bool), scores, _BARRED)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), value)
        return Dense(width)(mixed.reshape(batch, steps, width))


class Blocks(nn.Module):
    """Pre-norm Transformer blocks of attention and a two-layer network, with residual connections.

    `[B, T, d] -> [B, T, d]`.

    Attributes:
      layers: Number of blocks.
      heads: Number of heads of each attention.
      causal: Whether a position attends to itself and earlier positions only.
      adapter_width: Number of hidden units of the adapter of each attention; 0 for no adapters.
      adapter_scale: Factor on what an adapter adds.
      activation: The function between the two layers of a network.
    """

    layers: int
    heads: int
    causal: bool = False
    adapter_width: int = 0
    adapter_scale: float = 1.5
    activation: Callable[[jax.Array], jax.Array] = nn.gelu

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        width = x.shape[-1]
        for _ in range(self.layers):
            attention = Attention(self.heads, self.causal, self.adapter_width, self.adapter_scale)
            x = x + attention(nn.LayerNorm(epsilon=1e-5)(x), mask)
            hidden = Dense(4 * width)(nn.LayerNorm(epsilon=1e-5)(x))
            x = x + Dense(width)(self.activation(hidden))
        return x


class TextEncoder(nn.Module):
    """Embeddings with sinusoidal positions, blocks, and the mean: `[B, T] -> [B, width]`.

    Attributes:
      vocabulary: Number of ids, including padding.
      width: The width `d` of all layers.
      layers: Number of blocks.
      heads: Number of heads of each attention.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        real = ids != PADDING
        x = Embedding(self.vocabulary, self.width)(ids)
        x = x + jnp.asarray(_sines(ids.shape[1], self.width), x.dtype)
        x = nn.LayerNorm(epsilon=1e-5)(Blocks(self.layers, self.heads)(x, real))
        return masked_mean(x, real)


def transformer(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    vocabulary: int,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
) -> Model:
    """Transformer encoder for texts that masks padding: `[B, T] -> [B, width]`.

    Normalization before each attention and after the last block; mean over the tokens.
    32,000 ids, 4 classes: 4,493,316 parameters, 4,096,000 of them the embedding.

    References:
      Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin, "Attention Is All You
      Need", 2017, https://arxiv.org/abs/1706.03762.
    """
    require_text("transformer", input_shape, vocabulary)
    _require_divisible("transformer", width, heads)
    body = TextEncoder(vocabulary, width, layers, heads)
    return from_flax(body, Dense(num_classes), input_shape, reads_ids=True)


class Decoder(nn.Module):
    """Embeddings of tokens and positions, and causal blocks: `[B, T] -> [B, T, width]`.

    The attributes are those of `TextEncoder`.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        small = nn.initializers.normal(0.02)
        x = Embedding(self.vocabulary, self.width, small, name="tokens")(ids)
        x = Offset(2, small, name="positions")(x)
        return Blocks(self.layers, self.heads, causal=True)(x)


class TiedOutputs(nn.Module):
    """Normalization, and products with the embeddings: `[B, T, d] -> [B, T, vocabulary]`."""

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        x = nn.LayerNorm(epsilon=1e-5)(x)
        return Offset(1, name="bias")(x @ embedding.T)


def transformer_lm(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    vocabulary: int,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
) -> Model:
    """Decoder-only language model; its outputs at position t depend on tokens up to t.

    `[B, T] -> [B, T, width] -> [B, T, vocabulary]`. The embedding of the body is also the output
    matrix (tied weights); the head consists of the last normalization and a bias for each token, so
    that a personalized head models the client's token frequencies.
    Characters, T = 80, 90 ids: 418,650 parameters.

    References:
      Radford, Wu, Child, Luan, Amodei, Sutskever, "Language Models are Unsupervised Multitask
      Learners", 2019.
      Press, Wolf, "Using the Output Embedding to Improve Language Models", 2017,
      https://arxiv.org/abs/1608.05859.
    """
    require_text("transformer_lm", input_shape, vocabulary)
    _require_divisible("transformer_lm", width, heads)
    if num_classes != vocabulary:
        raise UserError(
            f"The model transformer_lm predicts its {vocabulary} input tokens, but the data set "
            f"has {num_classes} classes; choose another model, such as transformer."
        )
    body = Decoder(vocabulary, width, layers, heads)
    tied = ("tokens", "embedding")
    return from_flax(body, TiedOutputs(), input_shape, reads_ids=True, tied=tied)


class PromptPosition(nn.Module):
    """The position in a sequence at which `adapters.prompts` inserts prompts.

    `[..., T, d] -> [..., T, d]`; with `K` prompts `[..., K + T, d]`. There is no prompt without the
    adapter.

    Attributes:
      after: Number of tokens before the prompts.
    """

    after: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def cut_patches(images: jax.Array, patch: int) -> jax.Array:
    """Returns the patches of images as rows: `[B, H, W, c] -> [B, H W / patch^2, patch^2 c]`."""
    batch, height, width, channels = images.shape
    down, across = height // patch, width // patch
    cut = images.reshape(batch, down, patch, across, patch, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, down * across, -1)


def require_patches(name: str, input_shape: tuple[int, ...], patch: int) -> None:
    """Raises a `UserError` unless examples are images that can be cut into patches."""
    if len(input_shape) != 3 or any(side % patch for side in input_shape[:2]):
        raise UserError(
            f"The model {name} reads images in patches of {patch}x{patch}, but an example has the "
            f"shape {input_shape}; set config.model.patch to a divisor, or choose another model."
        )


class ImageEncoder(nn.Module):
    """Patches as tokens, positions, blocks, and the mean: `[B, H, W, c] -> [B, width]`.

    The mean is over the patches, without prompts.

    Attributes:
      patch: The height and width of a patch in pixels.
      width: The width of all layers.
      layers: Number of blocks.
      heads: Number of heads of each attention.
      adapter_width: Number of hidden units of the adapter of each attention; 0 for no adapters.
      adapter_scale: Factor on what an adapter adds.
    """

    patch: int
    width: int
    layers: int
    heads: int
    adapter_width: int = 0
    adapter_scale: float = 1.5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = cut_patches(x, self.patch)
        patches = x.shape[1]
        x = Offset(2, nn.initializers.normal(0.02), name="positions")(Dense(self.width)(x))
        x = PromptPosition()(x)
        adapters = {"adapter_width": self.adapter_width, "adapter_scale": self.adapter_scale}
        x = nn.LayerNorm(epsilon=1e-5)(Blocks(self.layers, self.heads, **adapters)(x))
        return jnp.mean(x[:, -patches:], axis=1)


def vit(
    input_shape: tuple[int, ...],
    num_classes: int,
    patch: int = 4,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    adapter_width: int | None = None,
    adapter_scale: float = 1.5,
) -> Model:
    """A small vision Transformer with the mean over patches: `[B, H, W, c] -> [B, width]`.

    32x32x3, 10 classes: 809,098 parameters; with adapters of 64 hidden units the
    attentions add `adapter_scale` times their outputs to keys and values: 908,682.

    References:
      Sun, Mendieta, Luo, Wu, Chen, "FedPerfix: Towards Partial Model Personalization of Vision
      Transformers in Federated Learning", 2023, https://arxiv.org/abs/2308.09160 (the adapters).
      Dosovitskiy, Beyer, Kolesnikov et al., "An Image is Worth 16x16 Words: Transformers for Image
      Recognition at Scale", 2021, https://arxiv.org/abs/2010.11929.
    """
    require_patches("vit", input_shape, patch)
    _require_divisible("vit", width, heads)
    body = ImageEncoder(patch, width, layers, heads, adapter_width or 0, adapter_scale)
    return from_flax(body, Dense(num_classes), input_shape)


def vit_ti(
    input_shape: tuple[int, ...],
    num_classes: int,
    patch: int = 4,
    adapter_width: int | None = None,
    adapter_scale: float = 1.5,
) -> Model:
    """`vit` of the size ViT-Ti, 12 blocks of width 192 with 3 heads: `[B, H, W, c] -> [B, 192]`.

    32x32x3, 10 classes: 5,362,378 parameters; with adapters of 128 hidden units: 6,253,258.

    References:
      Touvron, Cord, Douze, Massa, Sablayrolles, Jegou, "Training Data-Efficient Image Transformers
      and Distillation through Attention", 2021, https://arxiv.org/abs/2012.12877 (the size).
    """
    size = {"width": 192, "layers": 12, "heads": 3}
    adapters = {"adapter_width": adapter_width, "adapter_scale": adapter_scale}
    return vit(input_shape, num_classes, patch, **size, **adapters)


def _sines(steps: int, width: int) -> np.ndarray:
    """Returns sinusoidal positions `[steps, width]`, with wavelengths from 2 pi to 20,000 pi."""
    rates = 10000.0 ** (-np.arange(0, width, 2) / width)
    angles = np.arange(steps)[:, None] * rates
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(steps, -1)[:, :width]


def _require_divisible(name: str, width: int, heads: int) -> None:
    if width % heads:
        raise UserError(
            f"config.model.width is {width} and config.model.heads {heads}; in {name}, the "
            "width must be a multiple of the heads."
        )
