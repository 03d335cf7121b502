"""Convolutional networks of the federated learning literature, each as a body and a head.

Images may have any size that leaves something to pool; residual networks, which average over rows
and columns, accept any size.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from pfljax.errors import UserError
from pfljax.models.layers import Conv, Dense, max_pool
from pfljax.models.model import Model, from_flax


class ConvolutionsAndDense(nn.Module):
    """Convolutions with ReLU, some with 2x2 pooling, then dense layers with ReLU.

    `[B, H, W, c] -> [B, widths[-1]]`.

    Attributes:
      convolutions: Channels, kernel size, padding and whether to pool, for each convolution.
      widths: The widths of the dense layers.
    """

    convolutions: tuple[tuple[int, int, str, bool], ...]
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features, size, padding, pooled in self.convolutions:
            x = Conv(features, size, padding)(x)
            # ReLU and pooling commute; after pooling, ReLU has a quarter of the entries.
            x = nn.relu(max_pool(x) if pooled else x)
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = nn.relu(Dense(width)(x))
        return x


def cnn(input_shape: tuple[int, ...], num_classes: int) -> Model:
    """The 4-layer CNN of the FedAvg paper as used in pFL papers, without padding.

    Conv 5x5 32, pool, conv 5x5 64, pool, dense 512: `[B, H, W, c] -> [B, 512]`, at least 16x16.
    28x28x1, 10 classes: 582,026 parameters; 32x32x3, 10 classes: 878,538.

    Raises:
      UserError: The images are too small.

    References:
      McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep
      Networks from Decentralized Data", 2017, https://arxiv.org/abs/1602.05629.
    """
    _require_sides("cnn", input_shape, 16)
    body = ConvolutionsAndDense(((32, 5, "VALID", True), (64, 5, "VALID", True)), (512,))
    return from_flax(body, Dense(num_classes), input_shape)


def leaf_cnn(input_shape: tuple[int, ...], num_classes: int) -> Model:
    """LEAF's CNN for FEMNIST, with padding: conv 5x5 32, pool, conv 5x5 64, pool, dense 2048.

    `[B, H, W, c] -> [B, 2048]`. 28x28x1, 62 classes: 6,603,710 parameters.

    References:
      Caldas, Duddu, Wu, Li, Konecny, McMahan, Smith, Talwalkar, "LEAF: A Benchmark for Federated
      Settings", 2018, https://arxiv.org/abs/1812.01097.
    """
    _require_sides("leaf_cnn", input_shape, 4)
    body = ConvolutionsAndDense(((32, 5, "SAME", True), (64, 5, "SAME", True)), (2048,))
    return from_flax(body, Dense(num_classes), input_shape)


def simple_cnn(input_shape: tuple[int, ...], num_classes: int) -> Model:
    """The CNN of pfl-research's CIFAR-10 and FEMNIST benchmarks, without its dropout.

    Conv 3x3 32, conv 3x3 64, pool, dense 128: `[B, H, W, c] -> [B, 128]`.
    32x32x3, 10 classes: 1,626,442 parameters; 28x28x1, 62 classes: 1,206,590.

    References:
      Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated
      Optimization", 2021, https://arxiv.org/abs/2003.00295 (the CNN for EMNIST).
    """
    _require_sides("simple_cnn", input_shape, 6)
    body = ConvolutionsAndDense(((32, 3, "VALID", False), (64, 3, "VALID", True)), (128,))
    return from_flax(body, Dense(num_classes), input_shape)


def lenet(input_shape: tuple[int, ...], num_classes: int) -> Model:
    """LeNet-5 with ReLU and maximum pooling: conv 5x5 6, pool, conv 5x5 16, pool, dense 120, 84.

    `[B, H, W, c] -> [B, 84]`; images smaller than 32x32 are padded in the first layer.
    28x28x1, 10 classes: 61,706 parameters; 32x32x3, 10 classes: 62,006.

    References:
      LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition",
      1998, https://doi.org/10.1109/5.726791.
    """
    _require_sides("lenet", input_shape, 12)
    padding = "SAME" if min(input_shape[:2]) < 32 else "VALID"
    body = ConvolutionsAndDense(((6, 5, padding, True), (16, 5, "VALID", True)), (120, 84))
    return from_flax(body, Dense(num_classes), input_shape)


def _require_sides(name: str, input_shape: tuple[int, ...], least: int) -> None:
    """Raises a `UserError` unless examples are images `[H, W, c]` of at least `least` pixels."""
    if len(input_shape) != 3:
        raise UserError(
            f"The model {name} reads images, but an example has the shape {input_shape}; choose "
            "another model, such as mlp."
        )
    if min(input_shape[:2]) < least:
        raise UserError(
            f"The model {name} needs images of at least {least} pixels a side, but these have "
            f"{'x'.join(map(str, input_shape[:2]))}; choose another model, such as mlp."
        )
