"""Residual networks: ResNets of several depths, and MobileNetV2.

Images of federated data sets are small: the first layer has a 3x3 kernel without stride, as is
usual for CIFAR, instead of a stride and pooling as for ImageNet.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from pfljax.errors import UserError
from pfljax.models.layers import BatchNorm, Conv, Dense, DepthwiseConv, GroupNorm, average_pool
from pfljax.models.model import Model, from_flax

# Kernels are initialized as in PyTorch's residual networks.
_KERNEL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# The kernel of a channel in a depthwise convolution has nine entries and one output.
_DEPTHWISE_KERNEL = nn.initializers.normal((2 / 9) ** 0.5)
NORMS = ("group", "batch")


class Normalize(nn.Module):
    """Normalization of the channels, the last axis.

    Attributes:
      norm: 'group' or 'batch'.
      groups: Number of groups of channels, for 'group'.
    """

    norm: str
    groups: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.norm == "batch":
            return BatchNorm()(x)
        return GroupNorm(self.groups)(x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection.

    Attributes:
      features: Number of channels.
      strides: The stride of the first convolution.
      norm: The normalization, see `Normalize`.
    """

    features: int
    strides: int
    norm: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def convolve(x, size, strides):
            layer = Conv(self.features, size, "SAME", strides, use_bias=False, kernel_init=_KERNEL)
            return Normalize(self.norm)(layer(x))

        y = nn.relu(convolve(x, 3, self.strides))
        y = convolve(y, 3, 1)
        if y.shape != x.shape:
            x = convolve(x, 1, self.strides)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A convolution, stages of basic blocks, and the mean: `[B, H, W, c] -> [B, widths[-1]]`.

    Attributes:
      widths: Number of channels of each stage; every stage but the first halves the sides.
      blocks: Number of blocks of each stage.
      norm: The normalization, see `Normalize`.
    """

    widths: tuple[int, ...]
    blocks: int
    norm: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Conv(self.widths[0], 3, "SAME", use_bias=False, kernel_init=_KERNEL)(x)
        x = nn.relu(Normalize(self.norm)(x))
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                x = BasicBlock(width, 2 if stage > 0 and block == 0 else 1, self.norm)(x)
        return average_pool(x)


def resnet8(input_shape: tuple[int, ...], num_classes: int, norm: str = "group") -> Model:
    """ResNet of 3 stages of one block, 16 to 64 channels: `[B, H, W, c] -> [B, 64]`.

    32x32x3, 10 classes: 78,042 parameters. With `norm='batch'`, 78,714 including running
    statistics; a server averages these like all arrays, and FedBN keeps them local.

    References:
      He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2016,
      https://arxiv.org/abs/1512.03385.
      Wu, He, "Group Normalization", 2018, https://arxiv.org/abs/1803.08494.
    """
    return _resnet(input_shape, num_classes, (16, 32, 64), 1, norm)


def resnet10(input_shape: tuple[int, ...], num_classes: int, norm: str = "group") -> Model:
    """ResNet of 4 stages of one block, 64 to 512 channels: `[B, H, W, c] -> [B, 512]`.

    32x32x3, 10 classes: 4,903,242 parameters. See `resnet8` for `norm` and references.
    """
    return _resnet(input_shape, num_classes, (64, 128, 256, 512), 1, norm)


def resnet18(input_shape: tuple[int, ...], num_classes: int, norm: str = "group") -> Model:
    """ResNet of 4 stages of two blocks, 64 to 512 channels: `[B, H, W, c] -> [B, 512]`.

    32x32x3, 10 classes: 11,173,962 parameters. See `resnet8` for `norm` and references.
    """
    return _resnet(input_shape, num_classes, (64, 128, 256, 512), 2, norm)


def _resnet(input_shape, num_classes, widths, blocks, norm) -> Model:
    _require("resnet", input_shape, norm)
    return from_flax(ResNet(widths, blocks, norm), Dense(num_classes), input_shape)


class InvertedBlock(nn.Module):
    """Expansion by a 1x1 convolution, a depthwise one, projection; skip connection if shapes match.

    Attributes:
      features: Number of output channels.
      expansion: The factor by which the inner layers are wider.
      strides: The stride of the depthwise convolution.
      norm: The normalization, see `Normalize`.
    """

    features: int
    expansion: int
    strides: int
    norm: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def pointwise(x, features):
            return Normalize(self.norm)(Conv(features, 1, use_bias=False, kernel_init=_KERNEL)(x))

        y = x
        if self.expansion > 1:
            y = nn.relu6(pointwise(y, self.expansion * x.shape[-1]))
        y = DepthwiseConv(3, self.strides, _DEPTHWISE_KERNEL)(y)
        y = pointwise(nn.relu6(Normalize(self.norm)(y)), self.features)
        return x + y if x.shape == y.shape else y


class MobileNet(nn.Module):
    """A convolution, stages of inverted blocks, a 1x1 convolution, and the mean.

    `[B, H, W, c] -> [B, last]`.

    Attributes:
      stages: Expansion, channels, number of blocks and stride of the first block, for each stage.
      first: Number of channels before the stages.
      last: Number of channels after the stages.
      norm: The normalization, see `Normalize`.
    """

    stages: tuple[tuple[int, int, int, int], ...]
    first: int
    last: int
    norm: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def convolve(x, features, size):
            layer = Conv(features, size, "SAME", use_bias=False, kernel_init=_KERNEL)
            return nn.relu6(Normalize(self.norm)(layer(x)))

        x = convolve(x, self.first, 3)
        for expansion, features, blocks, strides in self.stages:
            for block in range(blocks):
                x = InvertedBlock(features, expansion, 1 if block else strides, self.norm)(x)
        return average_pool(convolve(x, self.last, 1))


# Strides of 1 in the first two positions where the network for ImageNet has 2.
_MOBILENET = (
    *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


def mobilenet_v2(input_shape: tuple[int, ...], num_classes: int, norm: str = "group") -> Model:
    """MobileNetV2 for small images, without its dropout: `[B, H, W, c] -> [B, 1280]`.

    32x32x3, 10 classes: 2,236,682 parameters. See `resnet8` for `norm`.

    References:
      Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear
      Bottlenecks", 2018, https://arxiv.org/abs/1801.04381.
    """
    _require("mobilenet_v2", input_shape, norm)
    return from_flax(MobileNet(_MOBILENET, 32, 1280, norm), Dense(num_classes), input_shape)


def _require(name: str, input_shape: tuple[int, ...], norm: str) -> None:
    if len(input_shape) != 3:
        raise UserError(
            f"The model {name} reads images, but an example has the shape {input_shape}; choose "
            "another model, such as mlp."
        )
    if norm not in NORMS:
        raise UserError(f"config.model.norm is {norm!r}; it must be one of {', '.join(NORMS)}.")
