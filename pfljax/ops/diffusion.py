"""Diffusion models of small vectors: noise levels, a conditional denoiser, and sampling.

Shapes in the docstrings: `T` timesteps, `B` vectors of `K` entries, `C` entries of a condition.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pfljax.core.types import Params
from pfljax.ops import linear
from pfljax.ops.minimize import minimize

_FREQUENCIES = 4  # of the sines and cosines of the time


def signal_fractions(num_timesteps: int, beta_min: float, beta_max: float) -> np.ndarray:
    """Returns `[T]`, the fraction `abar_t` of the variance that is signal after each timestep.

        abar_t = prod over s <= t of (1 - beta_s),   beta from beta_min to beta_max, evenly spaced

    Args:
      num_timesteps: `T`.
      beta_min: Variance of the noise that the first timestep adds.
      beta_max: Variance of the noise that the last timestep adds, below 1.
    """
    return np.cumprod(1 - np.linspace(beta_min, beta_max, num_timesteps))


def add_noise(
    x: jax.Array, fractions: np.ndarray, time_key: jax.Array, noise_key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns vectors with noise at random timesteps, their times and the noise.

        t ~ uniform{1 .. T},   eps ~ N(0, I),   x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps

    Args:
      x: `[B, ...]`.
      fractions: `[T]`, the `abar_t`.
      time_key: Typed PRNG key of the timesteps.
      noise_key: Typed PRNG key of the noise.

    Returns:
      `x_t [B, ...]`, `t / T [B]` and `eps [B, ...]`.
    """
    step = jax.random.randint(time_key, x.shape[:1], 0, len(fractions))
    noise = jax.random.normal(noise_key, x.shape, x.dtype)
    kept = jnp.asarray(fractions, x.dtype)[step].reshape(-1, *(1,) * (x.ndim - 1))
    noisy = jnp.sqrt(kept) * x + jnp.sqrt(1 - kept) * noise
    return noisy, (step + 1).astype(x.dtype) / len(fractions), noise


def init(key: jax.Array, size: int, conditions: int, hidden: int, dtype: jnp.dtype) -> list[Params]:
    """Returns a denoiser with two hidden layers, see `denoise`.

    Args:
      key: Typed PRNG key.
      size: `K`.
      conditions: `C`; 0 for an unconditional model.
      hidden: The width of the hidden layers.
      dtype: The dtype of all arrays.
    """
    widths = (size + 1 + 2 * _FREQUENCIES + conditions, hidden, hidden, size)
    pairs = zip(jax.random.split(key, 3), widths[:-1], widths[1:], strict=True)
    return [linear.init(k, before, after, dtype) for k, before, after in pairs]


def denoise(params: list[Params], x: jax.Array, time: jax.Array, condition: jax.Array) -> jax.Array:
    """Returns the predicted noise `[B, K]`.

    Args:
      params: The result of `init`.
      x: `[B, K]`, vectors with noise.
      time: `[B]`, timesteps divided by their number.
      condition: `[B, C]`.
    """
    angles = jnp.pi * time[:, None] * 2.0 ** jnp.arange(_FREQUENCIES, dtype=x.dtype)
    inputs = [x, time[:, None], jnp.sin(angles), jnp.cos(angles), condition]
    return linear.apply_layers(params, jnp.concatenate(inputs, axis=1))


def fit(
    key: jax.Array,
    x: jax.Array,
    condition: jax.Array,
    fractions: np.ndarray,
    *,
    hidden: int,
    rate: float,
    steps: int,
    batch_size: int,
) -> list[Params]:
    """Returns a denoiser after steps of Adam on the error of the predicted noise.

        mean over a batch of |f(x_t, t / T, s) - eps|^2 / K

    Args:
      key: Typed PRNG key.
      x: `[N, K]`, the vectors, standardized.
      condition: `[N, C]`, the condition of each vector.
      fractions: `[T]`, the `abar_t`.
      hidden: The width of the hidden layers.
      rate: Learning rate at the first step, which decays to 0 as a cosine.
      steps: Number of steps.
      batch_size: Number of vectors in a step, drawn with replacement.

    References:
      Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020,
      https://arxiv.org/abs/2006.11239 (the simplified objective).
    """

    def objective(params, key):
        row_key, time_key, noise_key = jax.random.split(key, 3)
        rows = jax.random.randint(row_key, (batch_size,), 0, len(x))
        noisy, time, noise = add_noise(x[rows], fractions, time_key, noise_key)
        return jnp.mean((denoise(params, noisy, time, condition[rows]) - noise) ** 2)

    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    init_key, steps_key = jax.random.split(key)
    params = init(init_key, x.shape[1], condition.shape[1], hidden, x.dtype)
    keys = jax.random.split(steps_key, steps)
    return minimize(objective, params, optimizer, optimizer.init(params), keys)[0]


def sample(
    predict_noise: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    shape: tuple[int, int],
    fractions: np.ndarray,
    *,
    eta: float = 1.0,
    steps: int = 0,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """Returns samples of a diffusion model.

        x0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t),   eps = predict_noise(x_t, t / T)
        sigma^2 = eta^2 (1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s)
        x_s = sqrt(abar_s) x0 + sqrt(1 - abar_s - sigma^2) eps + sigma z,   z ~ N(0, I)

    from `x_T ~ N(0, I)` through decreasing timesteps to `x_0`, with `abar_0 = 1`.

    Args:
      predict_noise: `(x [B, K], t / T [B]) -> [B, K]`.
      key: Typed PRNG key.
      shape: `(B, K)`.
      fractions: `[T]`, the `abar_t`.
      eta: 1 for ancestral sampling; 0 for DDIM, which is deterministic after the first draw.
      steps: Number of evaluated timesteps, evenly spaced; 0 for all.
      dtype: The dtype of the samples.

    References:
      Song, Meng, Ermon, "Denoising Diffusion Implicit Models", 2021,
      https://arxiv.org/abs/2010.02502 (equations 12 and 16).
    """
    total = len(fractions)
    chosen = np.unique(np.linspace(total, 1, steps or total).round().astype(int))[::-1]
    now = fractions[chosen - 1]
    following = np.append(now[1:], 1.0)
    sigma = eta * np.sqrt((1 - following) / (1 - now) * (1 - now / following))
    aside = np.sqrt(1 - following - sigma**2)
    first_key, steps_key = jax.random.split(key)

    def step(x, given):
        key, time, now, following, sigma, aside = given
        noise = predict_noise(x, jnp.full(shape[:1], time, dtype))
        clean = (x - jnp.sqrt(1 - now) * noise) / jnp.sqrt(now)
        drawn = sigma * jax.random.normal(key, shape, dtype)
        return jnp.sqrt(following) * clean + aside * noise + drawn, ()

    levels = [jnp.asarray(a, dtype) for a in (chosen / total, now, following, sigma, aside)]
    keys = jax.random.split(steps_key, len(chosen))
    first = jax.random.normal(first_key, shape, dtype)
    return jax.lax.scan(step, first, (keys, *levels))[0]
