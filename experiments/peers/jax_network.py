"""The network for baselines in JAX, with XLA's own convolutions and max-pooling."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from peer import Work


def build_network(work: Work):
    """Returns `init: key -> parameters` and `apply: (parameters, [B, H, W, c]) -> logits`."""

    def init(key):
        *sides, channels = work.shape
        kernels = []
        for features, size, padding, pooled in work.convolutions:
            kernels.append((size, size, channels, features))
            sides = [side - (size - 1 if padding == "VALID" else 0) for side in sides]
            sides = [side // 2 if pooled else side for side in sides]
            channels = features
        inputs = math.prod(sides) * channels
        for width in (*work.widths, work.num_classes):
            kernels.append((inputs, width))
            inputs = width
        draw = jax.nn.initializers.lecun_normal()
        keys = jax.random.split(key, len(kernels))
        return [
            {"kernel": draw(each, shape), "bias": jnp.zeros(shape[-1])}
            for each, shape in zip(keys, kernels, strict=True)
        ]

    def apply(parameters, x):
        for (_, _, padding, pooled), layer in zip(work.convolutions, parameters, strict=False):
            x = jax.lax.conv_general_dilated(
                x, layer["kernel"], (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + layer["bias"])
            if pooled:
                window = (1, 2, 2, 1)
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
        x = x.reshape(x.shape[0], -1)
        *hidden, last = parameters[len(work.convolutions) :]
        for layer in hidden:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        return x @ last["kernel"] + last["bias"]

    return init, apply
