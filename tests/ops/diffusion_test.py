"""Diffusion of vectors: closed forms for Gaussian data, a trained denoiser, two means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax.ops import diffusion

FRACTIONS = diffusion.signal_fractions(200, 5e-4, 0.1)
MEAN = np.array([1.5, -0.5])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.5]])
COUNT = 20_000


def optimal(x, time):
    """The best denoiser of N(MEAN, COVARIANCE), which is linear:

    eps = sqrt(1 - abar) (abar COVARIANCE + (1 - abar) I)^-1 (x - sqrt(abar) MEAN)
    """
    kept = jnp.asarray(FRACTIONS, x.dtype)[jnp.round(time * len(FRACTIONS)).astype(int) - 1]
    kept = kept[:, None]
    spread = kept[..., None] * COVARIANCE + (1 - kept[..., None]) * np.eye(2)
    centred = x - jnp.sqrt(kept) * MEAN
    return jnp.sqrt(1 - kept) * jnp.linalg.solve(spread, centred[..., None])[..., 0]


def require_moments(samples, mean, covariance, bias):
    """Checks the moments within four standard errors and a bias of the discrete timesteps."""
    count = len(samples)
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(
        np.abs(samples.mean(axis=0) - mean), 4 * scale / np.sqrt(count) + bias
    )
    error = 4 * np.outer(scale, scale) * np.sqrt(2 / count) + bias
    np.testing.assert_array_less(np.abs(np.cov(samples.T) - covariance), error)


def test_fractions_by_hand():
    np.testing.assert_allclose(
        diffusion.signal_fractions(3, 0.1, 0.3), [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]
    )


def test_noisy_vectors_have_the_variance_of_their_timestep():
    keys = jax.random.split(jax.random.key(0))
    x = jnp.full((COUNT, 1), 3.0)
    noisy, time, noise = diffusion.add_noise(x, FRACTIONS[::50], *keys)
    for step in range(4):
        kept, at = FRACTIONS[::50][step], np.asarray(time) == (step + 1) / 4
        assert abs(np.mean(at) - 0.25) < 0.02
        expected = np.sqrt(kept) * 3 + np.sqrt(1 - kept) * noise[at]
        np.testing.assert_allclose(noisy[at], expected, rtol=1e-4, atol=1e-5)
    assert abs(np.mean(noise)) < 0.03 and abs(np.var(noise) - 1) < 0.04


@pytest.mark.parametrize(
    ("eta", "steps", "bias"), [(1.0, 0, 0.02), (0.0, 0, 0.02), (0.0, 50, 0.06)]
)
def test_samples_of_the_optimal_denoiser_have_the_moments_of_the_data(eta, steps, bias):
    samples = diffusion.sample(
        optimal, jax.random.key(0), (COUNT, 2), FRACTIONS, eta=eta, steps=steps
    )
    require_moments(np.asarray(samples), MEAN, COVARIANCE, bias)


def test_one_step_of_ddim_by_hand():
    """With a single timestep, the sample is the x0 of the first draw."""
    fractions = np.array([0.36])
    first = diffusion.sample(
        lambda x, time: jnp.zeros_like(x), jax.random.key(0), (5, 2), fractions, eta=0.0
    )
    moved = diffusion.sample(
        lambda x, time: jnp.ones_like(x), jax.random.key(0), (5, 2), fractions, eta=0.0
    )
    np.testing.assert_allclose(moved, first - 0.8 / 0.6, rtol=1e-5, atol=1e-6)


def test_ddim_is_deterministic_after_the_first_draw_and_ancestral_sampling_is_not():
    """Without predicted noise, every timestep of DDIM only undoes the factor of the signal."""

    def clean(fractions, eta):
        found = diffusion.sample(
            lambda x, time: jnp.zeros_like(x), jax.random.key(0), (50, 2), fractions, eta=eta
        )
        return found * np.sqrt(fractions[-1])  # in units of the first draw

    first = clean(np.array([0.36]), 0.0)
    np.testing.assert_allclose(clean(np.array([0.8, 0.5]), 0.0), first, rtol=1e-5)
    changed = clean(np.array([0.8, 0.5]), 1.0) - first
    # sqrt(abar_2) / sqrt(abar_1) sigma z, as the last step adds no noise.
    sigma = np.sqrt(0.2 / 0.5 * (1 - 0.5 / 0.8))
    np.testing.assert_allclose(changed.std(), np.sqrt(0.5 / 0.8) * sigma, rtol=0.25)


def test_a_trained_denoiser_is_near_the_linear_one_and_samples_the_gaussian():
    rng = np.random.default_rng(0)
    x = jnp.array(rng.multivariate_normal(MEAN, COVARIANCE, 4000), jnp.float32)
    nothing = jnp.zeros((4000, 0))
    params = diffusion.fit(
        jax.random.key(0), x, nothing, FRACTIONS, hidden=32, rate=0.01, steps=1500, batch_size=256
    )
    noisy, time, noise = diffusion.add_noise(x, FRACTIONS, *jax.random.split(jax.random.key(1)))
    found, best = diffusion.denoise(params, noisy, time, nothing), optimal(noisy, time)
    assert jnp.mean((found - best) ** 2) < 0.03
    assert jnp.mean((found - noise) ** 2) < 1.05 * jnp.mean((best - noise) ** 2)
    samples = diffusion.sample(
        lambda x, time: diffusion.denoise(params, x, time, jnp.zeros((len(x), 0))),
        jax.random.key(2),
        (4000, 2),
        FRACTIONS,
    )
    require_moments(np.asarray(samples), MEAN, COVARIANCE, 0.1)


def test_a_condition_selects_one_of_two_means():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (2000, 1)).astype(np.float32)
    means = np.array([[-2.0, 1.0], [2.0, 0.0]])
    x = means[label[:, 0].astype(int)] + 0.3 * rng.normal(size=(2000, 2))
    params = diffusion.fit(
        jax.random.key(0),
        jnp.array(x, jnp.float32),
        jnp.array(label),
        FRACTIONS,
        hidden=32,
        rate=0.01,
        steps=1500,
        batch_size=256,
    )
    for value in (0, 1):
        condition = jnp.full((1000, 1), float(value))
        samples = diffusion.sample(
            lambda x, time, c=condition: diffusion.denoise(params, x, time, c),
            jax.random.key(1),
            (1000, 2),
            FRACTIONS,
        )
        np.testing.assert_allclose(samples.mean(axis=0), means[value], atol=0.15)
        np.testing.assert_allclose(samples.std(axis=0), 0.3, atol=0.12)
