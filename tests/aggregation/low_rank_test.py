"""Compression by leading singular values."""

import jax.numpy as jnp
import numpy as np

from pfljax.aggregation.low_rank import compress


def close(a, b):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_matrix_never_becomes_nothing():
    # PFLlib sends zeros for a matrix whose energy all singular values together barely hold.
    flat, zero = jnp.eye(4), jnp.zeros((3, 2, 5))
    cut, numbers = compress({"flat": flat, "zero": zero, "vector": jnp.ones(3)}, 0.98)
    close(cut["flat"], flat)
    np.testing.assert_array_equal(cut["zero"], zero)
    assert numbers == 16 + 30 + 3
    cut, numbers = compress({"flat": jnp.diag(jnp.array([3.0, 1.0]))}, 0.0)
    close(cut["flat"], jnp.diag(jnp.array([3.0, 0.0])))


def test_ranks_that_exceed_the_energy_and_how_many_numbers_they_take():
    draw = np.random.default_rng(0)
    left, right = (np.linalg.qr(draw.normal(size=(8, 3)))[0] for _ in range(2))
    values = np.array([3.0, 2.0, 1.0])  # the squares are 9, 4 and 1 of 14
    matrix = jnp.array((left * values) @ right.T)
    for energy, rank in ((0.5, 1), (0.64, 1), (0.65, 2), (0.92, 2), (0.93, 3)):
        cut, numbers = compress({"kernel": matrix}, energy)
        close(cut["kernel"], (left * values)[:, :rank] @ right.T[:rank])
        assert numbers == rank * (8 + 8 + 1)
