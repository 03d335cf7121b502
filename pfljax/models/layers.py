"""Layers whose weights may differ between clients, with PyTorch's default initialization.

Products are computed in the dtype of their kernel, normalizations in that of their scale; see
`model.compute_in`.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from pfljax.models.kernels.convolution import convolution, depthwise
from pfljax.models.kernels.product import product


def uniform_by_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """Returns the initializer `U(-1/sqrt(fan_in), 1/sqrt(fan_in))`, PyTorch's default."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Dense(nn.Module):
    """Fully connected layer: `[B, ..., d] -> [B, ..., features]`.

    Attributes:
      features: Number of outputs.
      use_bias: Whether to add a bias.
      kernel_init: The initializer of the kernel; None for PyTorch's default.
    """

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform_by_fan_in(x.shape[-1])
        kernel = self.param("kernel", self.kernel_init or init, (x.shape[-1], self.features))
        x = x.astype(kernel.dtype)
        out = product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], self.features)
        return out + self.param("bias", init, (self.features,)) if self.use_bias else out


# The names of the running statistics of batch normalization.
STATISTICS = ("mean", "var")


class BatchNorm(nn.Module):
    """Batch normalization of the last axis, in PyTorch's convention: `[B, ..., d] -> [B, ..., d]`.

        y = scale (x - mean) / sqrt(var + epsilon) + bias

    The running statistics are arrays of the params like all others. If the collection 'examples'
    has a variable `mask` `[B]`, the layer is in training mode: it uses mean and (biased) variance
    of the real examples, and stores the next running statistics,
    `(1 - momentum) running + momentum batch` with the unbiased variance, in the collection
    'observed', if that is mutable. A statistic that the batch does not define is unchanged: the
    variance of a single value, and both without examples.

    Attributes:
      momentum: The weight of the batch in the running statistics.
      epsilon: The constant added to the variance.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        x = x.astype(scale.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.param("mean", nn.initializers.zeros, shape)
        var = self.param("var", nn.initializers.ones, shape)
        if self.has_variable("examples", "mask"):
            running = mean, var
            mean, var, count = self.of_batch(x, self.get_variable("examples", "mask"))
            if self.is_mutable_collection("observed"):
                unbiased = var * count / jnp.maximum(count - 1, 1)
                self.observe("mean", running[0], mean, count > 0)
                self.observe("var", running[1], unbiased, count > 1)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return (x - mean) * factor + bias

    def of_batch(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns mean `[d]` and biased variance `[d]` of the real examples, and their number."""
        weight = mask.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        count = jnp.sum(weight) * (math.prod(x.shape[1:-1]))
        axes, divisor = tuple(range(x.ndim - 1)), jnp.maximum(count, 1)
        mean = jnp.sum(x * weight, axis=axes) / divisor
        return mean, jnp.sum((x - mean) ** 2 * weight, axis=axes) / divisor, count

    def observe(self, name: str, running: jax.Array, batch: jax.Array, known: jax.Array) -> None:
        moved = (1 - self.momentum) * running + self.momentum * batch
        self.put_variable("observed", name, jnp.where(known, moved, running))


class GroupNorm(nn.Module):
    """Normalization of groups of channels of each example: `[B, ..., d] -> [B, ..., d]`.

        y = scale (x - mean) / sqrt(var + epsilon) + bias

    The pixels of each channel are summed first, and mean, variance, scale and bias are combined
    into one factor and one term for each channel. On CPU this takes half to a third of the time of
    flax's layer, which computes the same in another order.

    Attributes:
      groups: Number of groups of consecutive channels, a divisor of `d`.
      epsilon: The constant added to the (biased) variance.
    """

    groups: int
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = x.astype(scale.dtype)
        pixels = tuple(range(1, x.ndim - 1))
        members = math.prod(x.shape[1:]) // self.groups

        def of_group(values):
            """Returns the mean over the group of each channel: `[B, ..., d] -> [B, d]`."""
            sums = jnp.sum(values, axis=pixels).reshape(-1, self.groups, channels // self.groups)
            return jnp.repeat(jnp.sum(sums, axis=-1) / members, channels // self.groups, axis=-1)

        mean = of_group(x)
        var = jnp.maximum(of_group(x * x) - mean * mean, 0)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        shape = (-1, *(1,) * len(pixels), channels)
        return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)


class Conv(nn.Module):
    """Convolution: `[B, H, W, c] -> [B, H', W', features]`.

    Attributes:
      features: Number of output channels.
      size: The height and width of the kernel.
      padding: 'VALID' or 'SAME', see `convolution.pad`.
      strides: The stride in both directions.
      use_bias: Whether to add a bias; unnecessary before a normalization, which removes it.
      kernel_init: The initializer of the kernel; None for PyTorch's default.
    """

    features: int
    size: int
    padding: str = "VALID"
    strides: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform_by_fan_in(self.size * self.size * x.shape[-1])
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init or init, shape)
        x = convolution(x.astype(kernel.dtype), kernel, padding=self.padding, strides=self.strides)
        return x + self.param("bias", init, (self.features,)) if self.use_bias else x


class DepthwiseConv(nn.Module):
    """Convolution of each channel separately, padded, no bias: `[B, H, W, c] -> [B, H', W', c]`.

    Attributes:
      size: The height and width of the kernels.
      strides: The stride in both directions.
      kernel_init: The initializer of the kernels, with shape `[size, size, c]`.
    """

    size: int
    strides: int
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1]))
        return depthwise(x.astype(kernel.dtype), kernel, padding="SAME", strides=self.strides)


class Offset(nn.Module):
    """Adds an array of the shape of the last axes: `[B, ...] -> [B, ...]`.

    Attributes:
      axes: Number of these axes.
      initial: The initializer of the array.
    """

    axes: int
    initial: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.param("offset", self.initial, x.shape[-self.axes :])


class TimeConv(nn.Module):
    """Convolution over time, without padding: `[B, T, c] -> [B, T - size + 1, features]`.

    Attributes:
      features: Number of output channels.
      size: The length of the kernel.
    """

    features: int
    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        steps, fan_in = x.shape[1] - self.size + 1, self.size * x.shape[-1]
        init = uniform_by_fan_in(fan_in)
        kernel = self.param("kernel", init, (self.size, x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        x = x.astype(kernel.dtype)
        windows = jnp.concatenate([x[:, i : i + steps] for i in range(self.size)], axis=-1)
        out = product(windows.reshape(-1, fan_in), kernel.reshape(fan_in, self.features))
        return out.reshape(-1, steps, self.features) + bias


def max_pool(x: jax.Array) -> jax.Array:
    """Maximum of every 2x2 window: `[B, H, W, c] -> [B, H // 2, W // 2, c]`.

    An odd last row or column is dropped, as in PyTorch.
    """
    height, width = (side - side % 2 for side in x.shape[1:3])
    return _max_pool(x[:, :height, :width])


def max_pool_time(x: jax.Array) -> jax.Array:
    """Maximum of every two steps: `[B, T, c] -> [B, T // 2, c]`; of equal ones the first."""
    steps = x.shape[1] // 2
    pairs = x[:, : 2 * steps].reshape(x.shape[0], steps, 2, x.shape[2])
    first, second = pairs[:, :, 0], pairs[:, :, 1]
    return jnp.where(first >= second, first, second)


def average_pool(x: jax.Array) -> jax.Array:
    """Mean over all rows and columns: `[B, H, W, c] -> [B, c]`."""
    return jnp.mean(x, axis=(1, 2))


def _corners(x: jax.Array) -> list[jax.Array]:
    """Returns the four entries of every 2x2 window of `[B, H, W, c]`, in row-major order."""
    batch, height, width, channels = x.shape
    windows = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return [windows[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]


@jax.custom_vjp
def _max_pool(x: jax.Array) -> jax.Array:
    """`max_pool` of images with even sides.

    The gradient goes to the first maximum in row-major order, as in PyTorch. On CPU, repeating the
    comparison in the backward pass is far cheaper than XLA's select-and-scatter.
    """
    a, b, c, d = _corners(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _max_pool_forward(x):
    return _max_pool(x), x


def _max_pool_backward(x, gradient):
    a, b, c, d = _corners(x)
    upper = jnp.maximum(a, b) >= jnp.maximum(c, d)
    left = jnp.where(upper, a >= b, c >= d)
    zero = jnp.zeros_like(gradient)
    columns = [
        jnp.stack(
            [jnp.where(row & left, gradient, zero), jnp.where(row & ~left, gradient, zero)], 3
        )
        for row in (upper, ~upper)
    ]
    return (jnp.stack(columns, axis=2).reshape(x.shape),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
