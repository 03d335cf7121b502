"""Batches of factorizations equal single ones, and end."""

import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax.ops import linear_algebra

PACKAGE = pathlib.Path(linear_algebra.__file__).parents[1]
FUNCTIONS = {
    "cholesky": (linear_algebra.cholesky, jnp.linalg.cholesky),
    "eigh": (linear_algebra.eigh, lambda matrix: tuple(jnp.linalg.eigh(matrix))),
    "svd": (linear_algebra.svd, lambda matrix: tuple(jnp.linalg.svd(matrix, False))),
    "orthonormal": (linear_algebra.orthonormal, lambda matrix: jnp.linalg.qr(matrix)[0]),
}

# Six factorizations of eight independent batches in one program. With LAPACK's batches as they
# are, it never ends on two threads.
PROGRAM = """
import jax, jax.numpy as jnp
from pfljax.ops import linear_algebra as ops

@jax.jit
def every(batches):
    one = (ops.cholesky, ops.eigh, ops.orthonormal, ops.svd)
    two = (ops.solve, ops.solve_lower)
    found = [jax.vmap(function)(batch) for batch in batches for function in one]
    return found, [jax.vmap(function)(batch, batch) for batch in batches for function in two]

matrices = jax.random.normal(jax.random.key(0), (8, 6, 200, 200))
jax.block_until_ready(every(matrices @ matrices.swapaxes(-1, -2) / 200 + jnp.eye(200)))
print("ended")
"""


@pytest.fixture(scope="module")
def matrices():
    """`[3, 2, 4, 4]`, symmetric and positive definite."""
    roots = jax.random.normal(jax.random.key(0), (3, 2, 4, 4))
    return roots @ roots.swapaxes(-1, -2) + jnp.eye(4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_batch_equals_matrices_one_by_one(matrices, name):
    own, plain = FUNCTIONS[name]
    found = jax.jit(jax.vmap(jax.vmap(own)))(matrices)
    expected = jax.vmap(jax.vmap(plain))(matrices)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
@pytest.mark.parametrize(
    "function, read", [(linear_algebra.solve, jnp.asarray), (linear_algebra.solve_lower, jnp.tril)]
)
def test_systems_are_solved_with_either_side_common(matrices, function, read, axes):
    left, right = (matrices[0] if axis == 0 else matrices[0, 0] for axis in axes)
    found = jax.jit(jax.vmap(function, in_axes=axes))(left, right)
    back = read(left) @ found
    np.testing.assert_allclose(back, jnp.broadcast_to(right, back.shape), atol=1e-5)


def test_many_independent_batches_in_one_program_end():
    command = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.stdout == "ended\n", ran.stderr


def test_no_other_file_has_batches_of_factorizations():
    factorization = re.compile(
        r"(jnp|jax\.numpy)\.linalg\.(cholesky|eigh?|eigvalsh?|inv|lstsq|pinv|qr|solve|svd)\b"
        r"|jax\.(scipy|lax)\.linalg\."
    )
    texts = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    found = {path.name for path, text in texts.items() if factorization.search(text)}
    assert found == {"linear_algebra.py"}
