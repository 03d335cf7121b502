"""Computing in bfloat16 with parameters in float32."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import models, tasks
from pfljax.core import Batch

NETWORKS = {
    "mlp": ((6,), {"widths": (5,)}),
    "mlp_bn": ((6,), {"widths": (5,)}),
    "cnn": ((16, 16, 1), {}),
    "resnet8": ((8, 8, 1), {}),
    "mobilenet_v2": ((16, 16, 1), {}),
    "vit": ((8, 8, 1), {"width": 8, "layers": 1}),
    "har_cnn": ((128, 3), {}),
    "textcnn": ((9,), {"vocabulary": 7, "width": 4, "features": 2}),
    "lstm": ((9,), {"vocabulary": 7, "widths": (4,)}),
    "transformer": ((9,), {"vocabulary": 7, "width": 8, "layers": 1}),
}


def setting(name):
    """The model, its task in both precisions, and a batch of four, one of them padding."""
    shape, arguments = NETWORKS[name]
    model = models.MODELS[name](shape, 3, **arguments)
    draw = np.random.default_rng(0)
    if model.reads_ids:
        inputs = draw.integers(1, 7, (4, *shape)).astype(np.int32)
    else:
        inputs = draw.normal(size=(4, *shape)).astype(np.float32)
    batch = Batch(inputs, jnp.array([0, 1, 2, 0]), jnp.arange(4) < 3)
    half = models.compute_in(model, jnp.bfloat16)
    both = (tasks.classification(one, num_classes=3) for one in (model, half))
    return model, *both, batch


@pytest.mark.parametrize("name", NETWORKS)
def test_products_are_short_and_everything_kept_is_not(name):
    model, _, short, batch = setting(name)
    parameters = jax.eval_shape(model.init, jax.random.key(0))
    step = jax.value_and_grad(short.loss)
    loss, gradient = jax.eval_shape(step, parameters, batch, jax.random.key(0))
    assert loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    features = jax.eval_shape(short.features, parameters, batch.inputs)
    assert features.dtype == jnp.float32
    program = str(jax.make_jaxpr(step)(parameters, batch, jax.random.key(0)))
    products = re.findall(r":(\w+)\[[^\]]*\] = dot_general", program)
    assert products and set(products) == {"bf16"}


@pytest.mark.parametrize("name", ["mlp", "mlp_bn"])
def test_losses_and_statistics_are_those_of_float32_to_its_rounding(name):
    model, full, short, batch = setting(name)
    parameters = model.init(jax.random.key(0))
    losses = [jax.jit(task.losses)(parameters, batch, jax.random.key(0)) for task in (full, short)]
    np.testing.assert_allclose(*losses, rtol=0.03)
    assert np.any(losses[0] != losses[1])
    if full.observe is not None:
        seen = [jax.jit(task.observe)(parameters, batch) for task in (full, short)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05, atol=0.01), *seen)
        assert {leaf.dtype for leaf in jax.tree.leaves(seen[1])} == {jnp.dtype("float32")}
