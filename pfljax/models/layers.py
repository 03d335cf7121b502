"""Layers whose weights may differ from client to client, and PyTorch's default initialization.

Under `vmap` over clients an ordinary convolution becomes a grouped one, and inside a loop XLA's
fast CPU convolution is not used at all. A convolution written as patches times a matrix stays a
(batched) matrix product in both cases. `docs/performance.md` has the measurements.
"""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp


def uniform_by_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """Returns the initializer `U(-1/sqrt(fan_in), 1/sqrt(fan_in))`, PyTorch's default."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Matrix product `[m, k] @ [k, n] -> [m, n]` with a gradient laid out for XLA on CPU.

    XLA turns `x^T g` into a product with a transposed left factor, which on CPU is up to half as
    slow again. Transposing whichever is smaller, the input or the result, and keeping it so with a
    barrier, avoids that.
    """
    return x @ kernel


def _product_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _product_backward(residuals, gradient):
    x, kernel = residuals
    inputs, outputs = kernel.shape
    if x.shape[0] <= outputs:
        for_kernel = jax.lax.optimization_barrier(x.T) @ gradient
    elif inputs >= outputs:
        for_kernel = jax.lax.optimization_barrier(gradient.T @ x).T
    else:
        for_kernel = x.T @ gradient
    return gradient @ kernel.T, for_kernel


product.defvjp(_product_forward, _product_backward)


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


class BatchNorm(nn.Module):
    """Batch normalization of the last axis, in PyTorch's convention: `[B, ..., d] -> [B, ..., d]`.

        y = scale (x - mean) / sqrt(var + epsilon) + bias

    Running statistics are arrays of the model like all others. Given a variable `mask` `[B]` in the
    collection 'examples', the layer trains: it takes mean and (biased) variance of the real
    examples, and says in the collection 'observed', if that is mutable, what the running ones
    become, `(1 - momentum) running + momentum batch`, with the unbiased variance. A statistic that
    the batch does not have stays: the variance of a single value, and anything without examples.

    Attributes:
      momentum: how far the running statistics go towards the batch's.
      epsilon: added to the variance.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
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
        # A server's optimizer may have left a running variance below zero.
        factor = scale * jax.lax.rsqrt(jnp.maximum(var, 0) + self.epsilon)
        return (x - mean) * factor + bias

    def of_batch(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns mean `[d]` and biased variance `[d]` of the real examples, and of how many."""
        weight = mask.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        count = jnp.sum(weight) * (math.prod(x.shape[1:-1]))
        axes, divisor = tuple(range(x.ndim - 1)), jnp.maximum(count, 1)
        mean = jnp.sum(x * weight, axis=axes) / divisor
        return mean, jnp.sum((x - mean) ** 2 * weight, axis=axes) / divisor, count

    def observe(self, name: str, running: jax.Array, batch: jax.Array, known: jax.Array) -> None:
        moved = (1 - self.momentum) * running + self.momentum * batch
        self.put_variable("observed", name, jnp.where(known, moved, running))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def patches(x: jax.Array, size: int) -> jax.Array:
    """Returns every `size` x `size` window of images.

    Args:
      x: `[B, H, W, channels]`.
      size: height and width of a window.

    Returns:
      `[B, H - size + 1, W - size + 1, size * size * channels]`.
    """
    rows, columns = x.shape[1] - size + 1, x.shape[2] - size + 1
    windows = [x[:, i : i + rows, j : j + columns] for i in range(size) for j in range(size)]
    return jnp.concatenate(windows, axis=-1)


def _patches_forward(x, size):
    return patches(x, size), None


def _patches_backward(size, _, windows):
    """Adds every window's entries up where they came from, one direction after the other."""
    batch, rows, columns, entries = windows.shape
    channels = entries // size**2
    height, width = rows + size - 1, columns + size - 1
    windows = windows.reshape(batch, rows, columns, size, size * channels)
    down = jnp.zeros((batch, height, columns, size * channels), windows.dtype)
    for i in range(size):
        down = down.at[:, i : i + rows].add(windows[:, :, :, i])
    down = down.reshape(batch, height, columns, size, channels)
    x = jnp.zeros((batch, height, width, channels), windows.dtype)
    for j in range(size):
        x = x.at[:, :, j : j + columns].add(down[:, :, :, j])
    return (x,)


patches.defvjp(_patches_forward, _patches_backward)


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
        windows = patches(x, self.size)
        out = product(windows.reshape(-1, fan_in), kernel.reshape(fan_in, self.features))
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
