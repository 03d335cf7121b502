"""Compression by leading singular values."""

import cohorts
import jax.numpy as jnp
import numpy as np

from pfljax import aggregation
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


def test_clients_and_server_cut_to_the_energy_of_the_round():
    aggregator = aggregation.low_rank(energy_start=0.2, energy_end=0.9)
    sent, seen = cohorts.uploads(sizes=(3, 1, 2)), []
    for round in (0, cohorts.LENGTH - 1):
        energy = 0.2 + 0.7 * (round + 1) / cohorts.LENGTH
        outcome = cohorts.one_round(aggregator, sent, round=round)
        total, bits = 0, []
        for upload in sent:
            weight = float(upload[0].weight)
            cut, numbers = truncated(np.asarray(upload[0].value["kernel"]) / weight, energy)
            total = total + weight * cut
            bits.append(32 * (numbers + 3 + 5 + 1))  # kernel, bias, the other part, the weight
        expected, _ = truncated(total / 6, energy)
        kernel = outcome.total[0].value["kernel"] / outcome.total[0].weight
        np.testing.assert_allclose(kernel, expected, atol=1e-5)
        np.testing.assert_allclose(outcome.bits, bits)
        seen += bits
        bias = sum(np.asarray(upload[0].value["bias"]) for upload in sent)
        np.testing.assert_allclose(outcome.total[0].value["bias"], bias, atol=1e-5)
    assert {32 * (8 + 9), 32 * (12 + 9)} == set(seen)  # one rank, and the matrix as it is


def truncated(matrix, energy):
    """The least ranks that hold the energy, and how many numbers send them."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    rank = 1 + int(np.sum(np.cumsum(values**2)[:-1] <= energy * np.sum(values**2)))
    numbers = min(rank * (sum(matrix.shape) + 1), matrix.size)
    return (left[:, :rank] * values[:rank]) @ right[:rank], numbers
