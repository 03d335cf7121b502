"""Layers whose weights may differ from client to client, with PyTorch's default initialization."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pfljax.models.convolution import convolution, product


def uniform_by_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """Returns the initializer `U(-1/sqrt(fan_in), 1/sqrt(fan_in))`, PyTorch's default."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Dense(nn.Module):
    """Fully connected layer: `[B, d] -> [B, features]`.

    Attributes:
      features: outputs.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform_by_fan_in(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        return product(x, kernel) + bias


class Conv(nn.Module):
    """Convolution without padding, stride 1: `[B, H, W, c] -> [B, H', W', features]`.

    Attributes:
      features: output channels.
      size: height and width of the kernel.
    """

    features: int
    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform_by_fan_in(self.size * self.size * x.shape[-1])
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        return convolution(x, kernel) + bias


def _corners(x: jax.Array) -> list[jax.Array]:
    """The four entries of every 2x2 window of `[B, H, W, c]`, in reading order."""
    batch, height, width, channels = x.shape
    windows = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return [windows[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """Largest entry of every 2x2 window: `[B, H, W, c] -> [B, H/2, W/2, c]`, H and W even.

    The gradient goes to the first largest entry in reading order, as in PyTorch; comparing
    again in the backward pass is far cheaper on CPU than XLA's select-and-scatter.
    """
    a, b, c, d = _corners(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _max_pool_forward(x):
    return max_pool(x), x


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


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
