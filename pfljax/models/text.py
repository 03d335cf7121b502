"""Networks for texts: rows of ids `[T]`, padded with 0 at the end.

The task may be classification, also of the single next token, as in LEAF's Shakespeare; `lstm_lm`
predicts at every position. Transformers are in `attention.py`.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pfljax.errors import UserError
from pfljax.models.ids import PADDING, Embedding, masked_mean, require_text
from pfljax.models.layers import Dense, TimeConv, uniform_by_fan_in
from pfljax.models.model import Model, from_flax


class BagOfWords(nn.Module):
    """The mean of the tokens' embeddings, and a linear layer: `[B, T] -> [B, width]`.

    Attributes:
      vocabulary: Number of ids, including padding.
      width: The width of embedding and layer.
    """

    vocabulary: int
    width: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = Embedding(self.vocabulary, self.width)(ids)
        return Dense(self.width)(masked_mean(x, ids != PADDING))


def fasttext(
    input_shape: tuple[int, ...], num_classes: int, *, vocabulary: int, width: int = 32
) -> Model:
    """fastText as in PFLlib, with a linear layer after the mean: `[B, T] -> [B, width]`.

    PFLlib's mean includes padding, ours does not.
    32,000 ids, 4 classes: 1,025,188 parameters.

    References:
      Joulin, Grave, Bojanowski, Mikolov, "Bag of Tricks for Efficient Text Classification", 2017,
      https://arxiv.org/abs/1607.01759.
    """
    require_text("fasttext", input_shape, vocabulary)
    body = BagOfWords(vocabulary, width)
    return from_flax(body, Dense(num_classes), input_shape, reads_ids=True)


class LargestOfWindows(nn.Module):
    """Convolutions of several lengths over embeddings, with maximum pooling over time.

    `[B, T] -> [B, len(sizes) * features]`.

    Attributes:
      vocabulary: Number of ids, including padding.
      width: The width of the embedding.
      sizes: The lengths of the kernels.
      features: Number of channels for each length.
    """

    vocabulary: int
    width: int
    sizes: tuple[int, ...]
    features: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = Embedding(self.vocabulary, self.width)(ids) * (ids != PADDING)[..., None]
        # Maximum and ReLU commute; after the maximum, ReLU has one entry per channel.
        found = [jnp.max(TimeConv(self.features, size)(x), axis=1) for size in self.sizes]
        return nn.relu(jnp.concatenate(found, axis=-1))


def textcnn(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    vocabulary: int,
    width: int = 128,
    sizes: tuple[int, ...] = (3, 4, 5),
    features: int = 100,
) -> Model:
    """Convolutions of texts, without dropout: `[B, T] -> [B, len(sizes) * features]`.

    32,000 ids, 4 classes: 4,251,104 parameters, 4,096,000 of them the embedding.

    References:
      Kim, "Convolutional Neural Networks for Sentence Classification", 2014,
      https://arxiv.org/abs/1408.5882.
    """
    require_text("textcnn", input_shape, vocabulary)
    if input_shape[0] < max(sizes):
        raise UserError(
            f"The model textcnn has windows of {max(sizes)} tokens, but texts have "
            f"{input_shape[0]}; lower config.model.sizes, or choose another model, such as "
            "fasttext."
        )
    body = LargestOfWindows(vocabulary, width, tuple(sizes), features)
    return from_flax(body, Dense(num_classes), input_shape, reads_ids=True)


class Lstm(nn.Module):
    """Long short-term memory: `[B, T, d] -> [B, T, features]`, with one bias per gate.

        i, f, g, o = split(x_t W + h_{t-1} U + b)
        c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g);  h_t = sigmoid(o) tanh(c_t)

    PyTorch has two biases, of which only the sum matters.

    Attributes:
      features: The width of `h` and `c`.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, _, width = x.shape
        init = uniform_by_fan_in(self.features)
        kernel = self.param("kernel", init, (width, 4 * self.features))
        recurrent = self.param("recurrent", init, (self.features, 4 * self.features))
        bias = self.param("bias", init, (4 * self.features,))

        def step(carry, projected):
            h, c = carry
            i, f, g, o = jnp.split(projected + h @ recurrent, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        # One product for the inputs of all steps; only the recurrent products are sequential.
        projected = (x.reshape(-1, width) @ kernel + bias).reshape(batch, -1, 4 * self.features)
        zeros = jnp.zeros((batch, self.features), projected.dtype)
        _, states = jax.lax.scan(step, (zeros, zeros), projected.swapaxes(0, 1))
        return states.swapaxes(0, 1)


class Recurrent(nn.Module):
    """Embeddings and LSTMs: `[B, T] -> [B, T, widths[-1]]`, or `[B, widths[-1]]` at the last token.

    Attributes:
      vocabulary: Number of ids, including padding.
      embedding: The width of the embedding.
      widths: The widths of the layers.
      everywhere: Whether to return all positions, or only that of the last token.
    """

    vocabulary: int
    embedding: int
    widths: tuple[int, ...]
    everywhere: bool

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = Embedding(self.vocabulary, self.embedding)(ids)
        for width in self.widths:
            x = Lstm(width)(x)
        if self.everywhere:
            return x
        last = jnp.maximum(jnp.sum(ids != PADDING, axis=1) - 1, 0)
        return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]


def lstm(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    vocabulary: int,
    embedding: int = 8,
    widths: tuple[int, ...] = (256, 256),
) -> Model:
    """LSTMs with the output at the last token of a text: `[B, T] -> [B, widths[-1]]`.

    The defaults are LEAF's for predicting the next of 80 characters of Shakespeare.
    90 ids and classes: 820,522 parameters; 80: 817,872.

    References:
      Hochreiter, Schmidhuber, "Long Short-Term Memory", 1997,
      https://doi.org/10.1162/neco.1997.9.8.1735.
      Caldas, Duddu, Wu, Li, Konecny, McMahan, Smith, Talwalkar, "LEAF: A Benchmark for Federated
      Settings", 2018, https://arxiv.org/abs/1812.01097.
    """
    require_text("lstm", input_shape, vocabulary)
    body = Recurrent(vocabulary, embedding, tuple(widths), everywhere=False)
    return from_flax(body, Dense(num_classes), input_shape, reads_ids=True)


def lstm_lm(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    vocabulary: int,
    embedding: int = 8,
    widths: tuple[int, ...] = (256, 256),
) -> Model:
    """LSTMs as a language model of characters or words, with outputs at every position.

    `[B, T] -> [B, T, widths[-1]] -> [B, T, num_classes]`. 90 ids and classes: 820,522 parameters.
    For words, use a wider embedding: 10,000 ids, embedding 96, widths (670,) have 9,725,560.
    """
    require_text("lstm_lm", input_shape, vocabulary)
    body = Recurrent(vocabulary, embedding, tuple(widths), everywhere=True)
    return from_flax(body, Dense(num_classes), input_shape, reads_ids=True)
