"""The matrix product and its gradients in every form, against JAX's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax.models.kernels import product as product_lib
from pfljax.models.kernels.product import product

# Written out because the rows are few, and because their loop has no rest; multiplied with the
# input, the result and neither transposed.
SHAPES = [(10, 30, 20), (20, 30, 16), (14, 30, 17), (40, 20, 7), (40, 5, 7)]


def draw(rows, inputs, outputs):
    x_key, kernel_key = jax.random.split(jax.random.key(0))
    shapes = (x_key, (rows, inputs)), (kernel_key, (inputs, outputs))
    return tuple(jax.random.normal(key, shape, jnp.float64) for key, shape in shapes)


def loss(multiply, x, kernel):
    return jnp.sum(jnp.sin(multiply(x, kernel)))


def slopes(multiply):
    return jax.grad(functools.partial(loss, multiply), argnums=(0, 1))


def same(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), ours, theirs)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_a_matrix_product(shape):
    given = draw(*shape)
    same(slopes(product)(*given), slopes(jnp.matmul)(*given))


@pytest.mark.parametrize("shape", [(4, 9, 6), (50, 9, 6), (50, 6, 9)])
def test_so_they_are_in_single_precision(shape):
    x, kernel = (leaf.astype(jnp.float32) for leaf in draw(*shape))
    ours, plain = slopes(product)(x, kernel), slopes(jnp.matmul)(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), ours, plain)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]])
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_gradients_of_several_clients_are_those_of_each(shape, axes):
    given = [
        jnp.stack([leaf, 2 * leaf]) if axis == 0 else leaf
        for leaf, axis in zip(draw(*shape), axes, strict=True)
    ]
    ours, theirs = (jax.vmap(slopes(form), axes)(*given) for form in (product, jnp.matmul))
    same(ours, theirs)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]])
def test_second_derivatives_are_those_of_a_matrix_product(shape):
    x, kernel = draw(*shape)

    def squared(form, kernel):
        return jnp.sum(slopes(form)(x, kernel)[1] ** 2)

    def turned(form, kernel):
        return jax.jvp(lambda kernel: slopes(form)(x, kernel), (kernel,), (jnp.cos(kernel),))[1]

    for of in (jax.grad(squared, argnums=1), turned):
        same(of(product, kernel), of(jnp.matmul, kernel))


def programs(rows, map_over=lambda form: form):
    """The text of the gradient's program on each platform."""
    given = [leaf.astype(jnp.float32) for leaf in draw(rows, 30, 20)]
    if map_over is jax.vmap:
        given = [leaf[None] for leaf in given]
    traced = jax.jit(map_over(slopes(product))).trace(*given)
    return {
        platform: traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }


def test_only_cpus_write_the_sum_out_and_only_for_few_rows_of_one_client():
    # Outputs and the gradient of the input are products everywhere, that of the kernel is a third.
    def count(texts):
        return {platform: text.count("stablehlo.dot_general") for platform, text in texts.items()}

    assert count(programs(10)) == {"cpu": 2, "cuda": 3, "tpu": 3}
    assert set(count(programs(40)).values()) == {3}
    assert set(count(programs(10, jax.vmap)).values()) == {3}


def test_update_and_written_out_gradient_are_one_loop():
    """What it is for: the gradient itself is never an array of the program."""
    x, kernel = (leaf.astype(jnp.float32) for leaf in draw(10, 96, 48))

    def step(kernel):
        return kernel - 0.1 * slopes(product)(x, kernel)[1]

    text = jax.jit(step).lower(kernel).compile().as_text()
    entry = text[text.index("ENTRY") :]
    made = [line for line in entry.splitlines() if "= f32[96,48]" in line]
    made = [line for line in made if "parameter(" not in line]
    assert len(made) == 1 and "fusion" in made[0], made


def test_missing_numbers_stay_missing():
    x, kernel = draw(10, 30, 20)
    gradient = slopes(product)(x.at[0, 0].set(jnp.nan), kernel)[1]
    assert bool(jnp.isnan(gradient).any())


@pytest.mark.parametrize(
    "rows, outputs, pays",
    [(10, 62, True), (12, 512, True), (20, 200, True), (20, 10, True), (20, 62, False),
     (20, 512, False), (32, 100, False)],
)  # fmt: skip
def test_cpus_write_sums_out_where_it_was_measured_to_pay(rows, outputs, pays):
    assert product_lib._sum_pays(rows, outputs) is pays
