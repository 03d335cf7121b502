"""Fading channels: their moments, the phases of a surface, and inversion."""

import jax
import jax.numpy as jnp
import numpy as np

from pfljax import core
from pfljax.ops import channel


def paths(count, elements=3, error=0.25):
    """Paths of many clients and their estimates, as NumPy arrays."""

    def one(key):
        draw_key, error_key = jax.random.split(key)
        drawn = channel.rayleigh(draw_key, elements, jnp.float32)
        return drawn, channel.estimate(drawn, error, error_key)

    return jax.tree.map(np.asarray, jax.vmap(one)(jax.random.split(jax.random.key(0), count)))


def test_gains_and_errors_have_their_variances():
    drawn, known = paths(4000)
    powers = np.mean(np.abs(drawn.direct) ** 2), np.mean(np.abs(drawn.reflected) ** 2)
    np.testing.assert_allclose(powers, 1, atol=0.08)
    np.testing.assert_allclose(np.mean(drawn.direct), 0, atol=0.05)
    np.testing.assert_allclose(np.mean(drawn.direct**2), 0, atol=0.05)  # circular
    error = np.abs(known.reflected - drawn.reflected) ** 2
    np.testing.assert_allclose(np.mean(error), 0.25, atol=0.02)


def test_phases_descend_along_the_gradient_of_their_objective(monkeypatch):
    # An independent gradient: that of jax.grad on the real and imaginary parts.
    drawn, _ = paths(1)
    direct, reflected = drawn.direct[0], drawn.reflected[0]

    def objective(phases):
        real, imaginary = jnp.cos(phases), jnp.sin(phases)
        a = 5 - direct.real - jnp.sum(reflected.real * real - reflected.imag * imaginary)
        b = -direct.imag - jnp.sum(reflected.real * imaginary + reflected.imag * real)
        return a**2 + b**2

    phases = jnp.zeros(3)
    for _ in range(channel.PHASE_STEPS):
        phases = phases - channel.PHASE_RATE * jax.grad(objective)(phases)
    found = channel.aligned_phases(channel.Paths(direct, reflected), 5.0)
    np.testing.assert_allclose(found, phases, rtol=1e-4, atol=1e-5)
    assert objective(found) < 0.9 * objective(jnp.zeros(3))


def test_a_surface_raises_the_gain_and_estimates_differ():
    def gains(key, elements, error):
        context = core.Context(key, jnp.int32(0), jnp.int32(1), 0)
        return channel.of_client(context, elements, error, 15.0, jnp.float32)

    keys = jax.random.split(jax.random.key(1), 200)
    many = jax.vmap(gains, in_axes=(0, None, None))
    alone, known = many(keys, 0, 0.0)
    np.testing.assert_array_equal(alone, known)
    helped, _ = many(keys, 10, 0.0)
    assert np.mean(np.abs(helped) ** 2) > 5 * np.mean(np.abs(alone) ** 2)
    true, known = many(keys, 10, 0.1)
    assert np.min(np.abs(true - known)) > 0


def test_inversion():
    gain, known = jnp.asarray(0.3 - 0.4j), jnp.asarray(0.6 + 0.8j)
    received, power = channel.inversion(gain, known)
    np.testing.assert_allclose(received, 0.3 * 0.6 - 0.4 * 0.8, rtol=1e-5)
    np.testing.assert_allclose(power, 1, rtol=1e-5)
    np.testing.assert_allclose(channel.inversion(gain, gain)[0], 1, rtol=1e-5)
    assert np.all(np.isfinite(channel.inversion(gain, jnp.zeros((), jnp.complex64))))
