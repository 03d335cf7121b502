"""Convolutions as matrix products, against the sums that define them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax.models.kernels.convolution import (
    by_minimal_filtering,
    by_patches,
    by_xla,
    convolution,
    depthwise,
    patches,
)
from pfljax.models.layers import Conv

plain = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(1, 1),
    padding="VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)


def draw(shape, kernel_shape):
    x_key, kernel_key = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(x_key, shape), jax.random.normal(kernel_key, kernel_shape)
    return x, kernel / np.prod(kernel_shape[:3]) ** 0.5


def near(a, b):
    """Rounding errors of a sum are as large for its small results as for its large ones."""
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(jnp.max(jnp.abs(b))))


# Outputs of 8x8, of 7x6 (cut from two tiles each way), of 1x2, and of 3x3 kernels.
SHAPES = [
    ((2, 12, 12, 8), (5, 5, 8, 9)),
    ((3, 11, 10, 8), (5, 5, 8, 8)),
    ((1, 5, 6, 16), (5, 5, 16, 8)),
    ((2, 10, 7, 9), (3, 3, 9, 8)),
    ((2, 9, 8, 1), (5, 5, 1, 6)),
]


@pytest.mark.parametrize("form", [by_patches, by_minimal_filtering, by_xla, convolution])
@pytest.mark.parametrize("shape, kernel_shape", SHAPES)
def test_outputs_and_both_gradients_are_those_of_a_convolution(form, shape, kernel_shape):
    x, kernel = draw(shape, kernel_shape)
    y, back = jax.vjp(form, x, kernel)
    expected, plain_back = jax.vjp(plain, x, kernel)
    near(y, expected)
    cotangent = jax.random.normal(jax.random.key(1), y.shape)
    for ours, theirs in zip(back(cotangent), plain_back(cotangent), strict=True):
        near(ours, theirs)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("depth", [1, 8])
def test_padding_and_strides_are_those_of_a_convolution(size, strides, depth):
    x, kernel = draw((2, 8, 7, depth), (size, size, depth, 8))
    half = size // 2
    settled = {"window_strides": (strides, strides), "padding": ((half, half), (half, half))}
    y, back = jax.vjp(functools.partial(convolution, padding="SAME", strides=strides), x, kernel)
    expected, plain_back = jax.vjp(functools.partial(plain, **settled), x, kernel)
    near(y, expected)
    for ours, theirs in zip(back(jnp.sin(y)), plain_back(jnp.sin(y)), strict=True):
        near(ours, theirs)


@pytest.mark.parametrize("strides", [1, 2])
def test_each_channel_by_itself_is_a_grouped_convolution(strides):
    x, kernel = draw((2, 6, 7, 5), (3, 3, 1, 5))
    settled = {"window_strides": (strides, strides), "padding": ((1, 1), (1, 1))}
    grouped = functools.partial(plain, feature_group_count=5, **settled)
    ours = functools.partial(depthwise, padding="SAME", strides=strides)
    y, back = jax.vjp(ours, x, kernel[:, :, 0])
    expected, plain_back = jax.vjp(grouped, x, kernel)
    near(y, expected)
    for own, theirs in zip(back(jnp.sin(y)), plain_back(jnp.sin(y)), strict=True):
        near(own, theirs.reshape(own.shape))


@pytest.mark.parametrize("size", [3, 5])
def test_minimal_filtering_is_exact_but_for_rounding(size):
    with jax.enable_x64(True):
        x, kernel = draw((2, 9, 12, 8), (size, size, 8, 8))
        np.testing.assert_allclose(
            by_minimal_filtering(x, kernel), plain(x, kernel), rtol=0, atol=1e-13
        )


def test_minimal_filtering_rounds_at_most_ten_times_worse_than_the_sum():
    x, kernel = draw((10, 12, 12, 32), (5, 5, 32, 64))
    with jax.enable_x64(True):
        exact = plain(jnp.asarray(x, jnp.float64), jnp.asarray(kernel, jnp.float64))
        exact = np.asarray(exact)
    errors = [
        np.sqrt(np.mean((np.asarray(form(x, kernel)) - exact) ** 2))
        for form in (by_patches, by_minimal_filtering)
    ]
    assert errors[1] < 10 * errors[0]


def test_accelerators_take_patches_and_cpus_take_minimal_filtering():
    x, kernel = draw((2, 12, 12, 8), (5, 5, 8, 16))
    programs = {
        platform: jax.jit(convolution).trace(x, kernel).lower(lowering_platforms=(platform,))
        for platform in ("cpu", "cuda", "tpu")
    }
    points = "tensor<64x8x16xf32>"  # a kernel for each of the 8x8 points of a tile
    assert points in programs["cpu"].as_text()
    assert points not in programs["cuda"].as_text() + programs["tpu"].as_text()


@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
def test_no_kernel_of_a_client_makes_a_grouped_convolution(axes):
    x, kernel = (jnp.stack([leaf, 2 * leaf]) for leaf in draw((2, 9, 8, 1), (5, 5, 1, 6)))
    given = [leaf if axis == 0 else leaf[0] for leaf, axis in zip((x, kernel), axes, strict=True)]
    ours, theirs = (jax.vmap(form, axes) for form in (convolution, plain))
    near(ours(*given), theirs(*given))
    assert "stablehlo.convolution" not in jax.jit(ours).lower(*given).as_text()
    assert "stablehlo.convolution" in jax.jit(convolution).lower(x[0], kernel[0]).as_text()
    loss = functools.partial(jax.grad, argnums=(0, 1))
    both = [
        loss(lambda x, k, form=form: jnp.sum(jnp.sin(form(x, k))))(*given)
        for form in (ours, theirs)
    ]
    jax.tree.map(near, *both)


@pytest.mark.parametrize(
    "shape, kernel_shape, pays",
    [
        ((10, 12, 12, 32), (5, 5, 32, 64), True),
        ((10, 9, 9, 32), (5, 5, 32, 32), False),  # 5x5 outputs of four tiles' 8x8
        ((10, 18, 18, 16), (3, 3, 16, 16), True),
        ((10, 18, 18, 4), (3, 3, 4, 64), False),
        ((10, 18, 18, 8), (3, 3, 8, 8), False),
        ((10, 4, 4, 128), (3, 3, 128, 128), False),
        ((10, 6, 6, 256), (3, 3, 256, 256), True),
        ((10, 6, 6, 512), (3, 3, 512, 512), False),
    ],
)
def test_cpus_filter_where_it_was_measured_to_pay(shape, kernel_shape, pays):
    x, kernel = jnp.zeros(shape), jnp.zeros(kernel_shape)
    lowered = jax.jit(convolution).trace(x, kernel).lower(lowering_platforms=("cpu",))
    points, channels, features = (kernel_shape[0] + 3) ** 2, *kernel_shape[2:]
    assert (f"tensor<{points}x{channels}x{features}xf32>" in lowered.as_text()) == pays


@pytest.mark.parametrize("size, channels", [(3, 2), (5, 1)])
def test_patches_are_windows_in_reading_order_and_their_transpose_adds_up(size, channels):
    x = jax.random.normal(jax.random.key(0), (2, 7, 8, channels))
    windows = patches(x, size)
    np.testing.assert_array_equal(windows[1, 2, 3], x[1, 2 : 2 + size, 3 : 3 + size].reshape(-1))
    cotangent = jax.random.normal(jax.random.key(1), windows.shape)
    back = jax.vjp(lambda x: patches(x, size), x)[1](cotangent)[0]
    np.testing.assert_allclose(jnp.vdot(windows, cotangent), jnp.vdot(x, back), rtol=1e-4)


@pytest.mark.parametrize(
    "layer, channels",
    [(Conv(8, 3), 1), (Conv(8, 3), 16), (Conv(8, 1), 16), (Conv(8, 3, "SAME", 2), 16)],
)
def test_no_grouped_convolution_under_vmap(layer, channels):
    images = jnp.ones((3, 2, 8, 8, channels))
    parameters = jax.vmap(lambda key: layer.init(key, images[0]))(
        jax.random.split(jax.random.key(0), 3)
    )
    text = jax.jit(jax.vmap(layer.apply)).lower(parameters, images).as_text()
    assert "convolution" not in text and "dot_general" in text
