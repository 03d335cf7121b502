"""The networks, each as a body and a head, with PyTorch's default initialization."""

from __future__ import annotations

import flax.linen as nn
import jax

from pfljax.errors import UserError
from pfljax.models.layers import BatchNorm, Conv, Dense, max_pool
from pfljax.models.model import Model, from_flax


class Flatten(nn.Module):
    """`[B, ...] -> [B, d]`; no parameters."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], -1)


class HiddenLayers(nn.Module):
    """Dense layers with ReLU after each: `[B, ...] -> [B, widths[-1]]`.

    Attributes:
      widths: outputs of each layer.
      batch_norm: normalize before each ReLU.
    """

    widths: tuple[int, ...]
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = Dense(width)(x)
            x = nn.relu(BatchNorm()(x) if self.batch_norm else x)
        return x


class TwoConvolutions(nn.Module):
    """Conv 5x5 32, pool, conv 5x5 64, pool, dense 512: `[B, H, W, c] -> [B, 512]`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # ReLU and pooling commute; after the pooling it touches a quarter of the entries.
        x = nn.relu(max_pool(Conv(32, 5)(x)))
        x = nn.relu(max_pool(Conv(64, 5)(x)))
        return nn.relu(Dense(512)(x.reshape(x.shape[0], -1)))


def logistic(input_shape: tuple[int, ...], num_classes: int) -> Model:
    """Multinomial logistic regression: a head on the flat input, and no body.

    784 inputs, 10 classes: 7,850 parameters.
    """
    return from_flax(Flatten(), Dense(num_classes), input_shape)


def mlp(input_shape: tuple[int, ...], num_classes: int, widths: tuple[int, ...] = (100,)) -> Model:
    """Dense layers with ReLU, then a linear head.

    784-100-10: 79,510 parameters, 78,500 of them in the body.
    """
    return from_flax(HiddenLayers(tuple(widths)), Dense(num_classes), input_shape)


def mlp_bn(
    input_shape: tuple[int, ...], num_classes: int, widths: tuple[int, ...] = (100,)
) -> Model:
    """The same with batch normalization before each ReLU.

    784-100-10: 79,910 arrays' entries, of which 200 are running statistics.
    """
    return from_flax(HiddenLayers(tuple(widths), batch_norm=True), Dense(num_classes), input_shape)


def cnn(input_shape: tuple[int, ...], num_classes: int) -> Model:
    """The 4-layer CNN of FedAvg's paper as pFL papers use it, without padding.

    28x28x1, 10 classes: 582,026 parameters; 32x32x3, 10 classes: 878,538.

    Raises:
      UserError: the images do not leave an even number of rows and columns for each pooling.

    References:
      McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep
      Networks from Decentralized Data", 2017, https://arxiv.org/abs/1602.05629.
    """
    for side in input_shape[:2]:
        if side < 16 or (side - 4) % 4:
            raise UserError(
                f"The model cnn wants images of 16, 20, 24, 28, 32 ... pixels a side, and these "
                f"have {'x'.join(map(str, input_shape[:2]))}; name another model, such as mlp."
            )
    return from_flax(TwoConvolutions(), Dense(num_classes), input_shape)


MODELS = {"logistic": logistic, "mlp": mlp, "mlp_bn": mlp_bn, "cnn": cnn}
