"""Spectra of models: the amplitudes of the discrete Fourier transforms of their arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core.types import Params, Path

# The smallest probability of which a logarithm is taken.
_LEAST = 1e-12


def arrays_in_order(params: Params, layers: tuple[Path, ...]) -> list[jax.Array]:
    """Returns the arrays of a model by layer, and in each layer those with most axes first.

    Args:
      params: The params, or a part of them.
      layers: The paths of the layers in the order in which inputs pass them, `Task.layers`; arrays
        of no layer are last.
    """
    found = jax.tree_util.tree_flatten_with_path(params)[0]
    pairs = [(tuple(entry.key for entry in path), array) for path, array in found]

    def rank(pair):
        path, array = pair
        number = (i for i, layer in enumerate(layers) if path[: len(layer)] == layer)
        return next(number, len(layers)), -array.ndim, path

    return [array for _, array in sorted(pairs, key=rank)]


def spectrum(
    params: Params, layers: tuple[Path, ...], fraction: float | jax.Array, low_frequencies: bool
) -> jax.Array:
    """Returns `[P]`, the amplitudes of a model's frequencies as probabilities, some set to zero.

        s = (|DFT(W_1)|, |DFT(W_2)|, ...), of which a fraction is kept;   p = s / sum s

    Kernels are transformed as matrices with a column for each output, biases as vectors. If all
    amplitudes that are kept are zero, so is the result.

    Args:
      params: The `P` weights of the model, without running statistics.
      layers: The order of the layers, see `arrays_in_order`.
      fraction: `[]`, the fraction of the amplitudes that is kept; 1 keeps all.
      low_frequencies: Whether to keep the lowest frequencies of each array: of a vector those up to
        `fraction / 2` cycles per entry, of a matrix those up to `sqrt(fraction) / 2` along both
        axes. False keeps the first amplitudes, which are those of the first layers.
    """
    arrays = arrays_in_order(params, layers)
    matrices = [array.reshape(-1, array.shape[-1] if array.ndim else 1) for array in arrays]
    amplitudes = jnp.concatenate([jnp.abs(jnp.fft.fft2(matrix)).ravel() for matrix in matrices])
    if low_frequencies:
        kept = jnp.concatenate([_is_low(matrix, fraction).ravel() for matrix in matrices])
    else:
        number = jnp.arange(1, amplitudes.size + 1, dtype=amplitudes.dtype)
        kept = number / amplitudes.size <= fraction
    amplitudes = jnp.where(kept, amplitudes, 0)
    total = jnp.sum(amplitudes)
    return amplitudes / jnp.where(total > 0, total, 1)


def _is_low(matrix: jax.Array, fraction: float | jax.Array) -> jax.Array:
    """Returns a mask, of the shape of the matrix, of its lowest frequencies."""
    axes = sum(length > 1 for length in matrix.shape)
    most = 0.5 * jnp.power(fraction, 1 / max(axes, 1))
    rows, columns = (jnp.abs(jnp.fft.fftfreq(n, dtype=matrix.dtype)) for n in matrix.shape)
    return (rows[:, None] <= most) & (columns <= most)


def divergence(target: jax.Array, own: jax.Array) -> jax.Array:
    """Returns `[]`, `KL(target || own)` of two spectra `[P]`; `target` zero contributes nothing.

    Probabilities below 1e-12 are raised to it in the logarithms.
    """
    ratio = jnp.log(jnp.maximum(target, _LEAST)) - jnp.log(jnp.maximum(own, _LEAST))
    return jnp.sum(target * ratio)
