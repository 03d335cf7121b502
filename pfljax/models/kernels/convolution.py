"""Convolutions as matrix products, which are fast inside loops and with weights for each client.

Under `vmap` over clients an ordinary convolution becomes a grouped one, and its gradients are slow
inside a loop on a CPU. Two implementations avoid both:

- patches (im2col): every window of the image is a row, and one product with the kernel gives all
  outputs;
- minimal filtering (Winograd's): tiles of the image and the kernel are transformed so that 4x4
  outputs of a 5x5 kernel take 64 multiplications instead of 400, those of a 3x3 kernel 36 instead
  of 144. In float32 its rounding errors are some ten times those of the direct sum, so it is used
  on CPUs only: accelerators round the factors of their products to bfloat16 or TF32.

A third one, XLA's own, has the fastest forward pass for images of one channel on a CPU, if kernels
are not vmapped; its gradients are those of patches.

Measured in a loop on one core of a quiet machine, in microseconds. Training: outputs and both
gradients (of the kernel only for up to three channels), batch of 10; scoring: outputs, batch of 32.

| | | training | | | scoring | | |
|---|---|---:|---:|---:|---:|---:|---:|
| kernel | input | patches | own | filtering | patches | own | filtering |
| 5x5x1x32 | 28x28x1 | 411 | 388 | | 1,433 | 387 | |
| 5x5x3x32 | 32x32x3 | 1,199 | 2,570 | | 2,642 | 5,231 | |
| 5x5x32x64 | 12x12x32 | 1,452 | 1,508 | 568 | 2,677 | 1,862 | 951 |
| 5x5x16x32 | 12x12x16 | 444 | 484 | 223 | 927 | 481 | 388 |
| 5x5x8x16 | 12x12x8 | 144 | 185 | 123 | 305 | 260 | 189 |
| 5x5x32x32 | 9x9x32 | 332 | 351 | 384 | 632 | 372 | 697 |
| 3x3x1x32 | 28x28x1 | 220 | 204 | | 516 | 267 | |
| 3x3x3x32 | 32x32x3 | 527 | 1,088 | | 1,065 | 2,162 | |
| 3x3x8x8 | 32x32x8 | 439 | 832 | 550 | 1,255 | 1,580 | 1,117 |
| 3x3x8x16 | 18x18x8 | 225 | 318 | 178 | 547 | 450 | 358 |
| 3x3x16x16 | 34x34x16 | 1,833 | 2,301 | 1,108 | 8,024 | 2,997 | 3,600 |
| 3x3x32x32 | 18x18x32 | 1,267 | 1,356 | 641 | 2,881 | 1,394 | 1,371 |
| 3x3x32x64 | 14x14x32 | 1,208 | 1,254 | 567 | 2,110 | 1,530 | 1,047 |
| 3x3x64x64 | 8x8x64 | 568 | 602 | 495 | 923 | 797 | 837 |
| 3x3x64x64 | 7x7x64 | 401 | 417 | 494 | 630 | 535 | 828 |
| 3x3x128x128 | 4x4x128 | 269 | 302 | 589 | 382 | 376 | 591 |
| 3x3x256x256 | 10x10x256 | 14,812 | 16,731 | 6,381 | 26,986 | 21,950 | 9,503 |
| 3x3x512x512 | 6x6x512 | 17,081 | 18,118 | 19,608 | 30,053 | 23,544 | 11,592 |

References:
  Winograd, "Arithmetic Complexity of Computations", 1980,
  https://epubs.siam.org/doi/book/10.1137/1.9781611970364.
  Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", 2016,
  https://arxiv.org/abs/1509.09308.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.models.kernels.product import product

# Side length of a tile of outputs; larger tiles need fewer products and round worse.
_TILE = 4
# The points at which the polynomials of minimal filtering are evaluated, and infinity.
_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)
# Minimum number of input channels, and of input times output channels, for minimal filtering: below
# them, the transforms cost more than the products that they save.
_LEAST_CHANNELS, _LEAST_WEIGHTS = 8, 128
# Minimum fraction of the tiles' outputs that is used, and maximum of input times output channels
# per tile of a batch, since the kernel is transformed once per batch.
_LEAST_USE, _WEIGHTS_PER_TILE = 0.5, 2**14


def convolution(
    x: jax.Array, kernel: jax.Array, *, padding: str = "VALID", strides: int = 1
) -> jax.Array:
    """Convolves with the implementation that is fastest on the device.

        y[b, i, j, o] = sum_{p, q, c} x[b, s i + p, s j + q, c] kernel[p, q, c, o],  s = strides

    Args:
      x: `[B, H, W, c]`, the images.
      kernel: `[size, size, c, features]`.
      padding: 'VALID' for none; see `pad` for 'SAME'.
      strides: The stride in both directions.

    Returns:
      `[B, (H - size) // strides + 1, (W - size) // strides + 1, features]` of the padded size.
    """
    size, channels = kernel.shape[1:3]
    x = pad(x, size, padding)
    if size == 1:
        return by_patches(x[:, ::strides, ::strides], kernel)
    if strides != 1 or kernel.dtype == jnp.bfloat16:
        return by_patches(x, kernel, strides)
    if channels == 1:
        return jax.lax.platform_dependent(x, kernel, cpu=by_xla, default=by_patches)
    if not _filtering_pays(x.shape, kernel.shape):
        return by_patches(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=by_minimal_filtering, default=by_patches)


def _filtering_pays(shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> bool:
    """Whether minimal filtering is faster than patches on a CPU, according to measurements."""
    size, _, channels, features = kernel_shape
    weights = channels * features
    if size not in (3, 5) or channels < _LEAST_CHANNELS or weights < _LEAST_WEIGHTS:
        return False
    outputs = [side - size + 1 for side in shape[1:3]]
    tiles = math.prod(-(-wanted // _TILE) for wanted in outputs)
    used = math.prod(outputs) / (tiles * _TILE**2)
    return used >= _LEAST_USE and weights <= _WEIGHTS_PER_TILE * tiles * shape[0]


def depthwise(x: jax.Array, kernel: jax.Array, *, padding: str, strides: int = 1) -> jax.Array:
    """Convolves each channel with a separate kernel, as a sum that XLA fuses into one loop.

    Args:
      x: `[B, H, W, c]`, the images.
      kernel: `[size, size, c]`.
      padding: As in `convolution`.
      strides: The stride in both directions.

    Returns:
      `[B, H', W', c]`.
    """
    size = kernel.shape[0]
    windows = _shifted(pad(x, size, padding), size, strides)
    return sum(
        part * weights for part, weights in zip(windows, kernel.reshape(size**2, -1), strict=True)
    )


def pad(x: jax.Array, size: int, padding: str) -> jax.Array:
    """Adds zeros for a kernel of odd size: none for 'VALID', half its size around for 'SAME'.

    This is PyTorch's rule. XLA's 'SAME' pads differently with strides.
    """
    if padding == "VALID" or size == 1:
        return x
    half = size // 2
    return jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))


def by_patches(x: jax.Array, kernel: jax.Array, strides: int = 1) -> jax.Array:
    """`convolution` as one product of all windows with the kernel, without padding."""
    size = kernel.shape[0]
    if strides == 1:
        windows = patches(x, size)
    else:
        windows = jnp.concatenate(_shifted(x, size, strides), axis=-1)
    fan_in, features = windows.shape[-1], kernel.shape[-1]
    out = product(windows.reshape(-1, fan_in), kernel.reshape(fan_in, features))
    return out.reshape(*windows.shape[:-1], features)


@jax.custom_vjp
def by_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolution` by XLA; its gradients, and everything under `vmap`, are by patches."""
    return _unless_vmapped(x, kernel)


def _by_xla_forward(x, kernel):
    return _unless_vmapped(x, kernel), (x, kernel)


def _by_xla_backward(residuals, gradient):
    return jax.vjp(by_patches, *residuals)[1](gradient)


by_xla.defvjp(_by_xla_forward, _by_xla_backward)


@jax.custom_batching.custom_vmap
def _unless_vmapped(x: jax.Array, kernel: jax.Array) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)


@_unless_vmapped.def_vmap
def _by_patches_if_vmapped(num_clients, is_vmapped, x, kernel):
    """Returns the same by patches, for vmapped `x` `[n, B, H, W, c]` or `kernel` `[n, ...]`."""
    x, kernel = (
        leaf if vmapped else leaf[None]
        for leaf, vmapped in zip((x, kernel), is_vmapped, strict=True)
    )
    windows = patches(x.reshape(-1, *x.shape[2:]), kernel.shape[1])
    rows = windows.reshape(x.shape[0], -1, windows.shape[-1])
    out = rows @ kernel.reshape(kernel.shape[0], -1, kernel.shape[-1])
    shape = (num_clients, x.shape[1], *windows.shape[1:3], kernel.shape[-1])
    return out.reshape(shape), True


def by_minimal_filtering(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolution` as one small product for each point of the transformed tiles.

        Y = A^T [(G g G^T) * (B^T d B)] A   for a tile d of the image and a kernel g

    The transforms of both directions are combined in one matrix, a Kronecker product.
    """
    size, _, channels, features = kernel.shape
    batch, height, width, _ = x.shape
    for_output, for_kernel, for_input = (
        np.kron(matrix, matrix).astype(x.dtype) for matrix in _filtering_matrices(size)
    )
    side = _TILE + size - 1
    down, across = (-(-(length - size + 1) // _TILE) for length in (height, width))
    missing = [(0, tiles * _TILE + size - 1 - n) for tiles, n in ((down, height), (across, width))]
    x = jnp.pad(x, ((0, 0), *missing, (0, 0))).transpose(1, 2, 0, 3)
    x = jnp.stack([x[i * _TILE : i * _TILE + side] for i in range(down)], axis=2)
    x = jnp.stack([x[:, j * _TILE : j * _TILE + side] for j in range(across)], axis=3)
    # [side, side, down, across, batch, channels]
    tiles = (for_input @ x.reshape(side**2, -1)).reshape(side**2, -1, channels)
    weights = (for_kernel @ kernel.reshape(size**2, -1)).reshape(side**2, channels, features)
    products = jnp.einsum("ptc,pcf->ptf", tiles, weights)
    y = for_output @ products.reshape(side**2, -1)
    y = y.reshape(_TILE, _TILE, down, across, batch, features).transpose(4, 2, 0, 3, 1, 5)
    y = y.reshape(batch, down * _TILE, across * _TILE, features)
    return y[:, : height - size + 1, : width - size + 1]


@functools.cache
def _filtering_matrices(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns `A^T` `[4, n]`, `G` `[n, size]` and `B^T` `[n, n]`, with `n = size + 3`.

    A product of polynomials is the interpolation of the product of their values: with `V_k` the
    values of the `k` monomials at the points, `V_n^{-1} [(V_size g) * (V_4 y)]`. Filtering is its
    transpose with respect to `y`.
    """
    n = _TILE + size - 1
    points = np.array(_POINTS[: n - 1])

    def values(length):
        matrix = np.zeros((n, length))
        matrix[:-1] = points[:, None] ** np.arange(length)
        matrix[-1, -1] = 1  # at infinity, only the leading coefficient remains
        return matrix

    # Factors can be moved between rows of G and B^T; with this one, B^T is nearly integer.
    factors = [np.prod([p - q for q in points if q != p]) for p in points]
    factors = np.array([*factors, 1.0])[:, None]
    for_input = np.linalg.inv(values(n)).T * factors
    return values(_TILE).T, values(size) / factors, for_input


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def patches(x: jax.Array, size: int) -> jax.Array:
    """Returns every `size` x `size` window of images.

    Args:
      x: `[B, H, W, channels]`, the images.
      size: The height and width of a window.

    Returns:
      `[B, H - size + 1, W - size + 1, size * size * channels]`.
    """
    return jnp.concatenate(_shifted(x, size), axis=-1)


def _shifted(x: jax.Array, size: int, strides: int = 1) -> list[jax.Array]:
    """Returns each entry of all windows: `size`^2 arrays `[B, H', W', channels]`."""
    rows, columns = x.shape[1] - size + 1, x.shape[2] - size + 1
    return [
        x[:, i : i + rows : strides, j : j + columns : strides]
        for i in range(size)
        for j in range(size)
    ]


def _patches_forward(x, size):
    return patches(x, size), None


def _patches_backward(size, _, windows):
    """Adds the entries of every window to their positions, one direction after the other."""
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
