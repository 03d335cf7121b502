"""Layers whose weights may differ from client to client, and PyTorch's default initialization.

Under `vmap` over clients an ordinary convolution becomes a grouped one, and inside a loop XLA's
fast CPU convolution is not used at all. A convolution written as patches times a matrix stays a
(batched) matrix product in both cases. `docs/performance.md` has the measurements.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


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
        return x @ kernel + bias


def patches(x: jax.Array, height: int, width: int) -> jax.Array:
    """Returns `[B, H - height + 1, W - width + 1, height * width * channels]`, every window of `x`.

    Args:
      x: `[B, H, W, channels]`.
      height: of a window.
      width: of a window.
    """
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    windows = [x[:, i : i + rows, j : j + columns, :] for i in range(height) for j in range(width)]
    return jnp.concatenate(windows, axis=-1)


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
        fan_in = self.size * self.size * x.shape[-1]
        init = uniform_by_fan_in(fan_in)
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        windows = patches(x, self.size, self.size)
        out = windows.reshape(-1, fan_in) @ kernel.reshape(fan_in, self.features)
        return out.reshape(*windows.shape[:-1], self.features) + bias


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
