"""Losses and gradients of networks equal those of flax's own layers, with weights per client."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import models, tasks
from pfljax.core import Batch
from pfljax.models.attention import ImageEncoder
from pfljax.models.images import ConvolutionsAndDense
from pfljax.models.layers import Dense
from pfljax.models.model import from_flax
from pfljax.models.residual import MobileNet, ResNet

CLIENTS, ROWS, IDS, STEPS = 2, 3, 7, 6


def use(layer, arrays, *inputs, **arguments):
    """Calls a layer of flax's with arrays of ours."""
    return layer.apply({"params": arrays}, *inputs, **arguments)


def dense(arrays, x):
    return use(nn.Dense(arrays["bias"].size), arrays, x)


def convolve(arrays, x, padding=0, strides=1, groups=1):
    *sizes, _, features = arrays["kernel"].shape
    layer = nn.Conv(
        features,
        sizes,
        strides,
        padding=[(padding, padding)] * len(sizes),
        use_bias="bias" in arrays,
        feature_group_count=groups,
    )
    return use(layer, arrays, x)


def group_norm(arrays, x):
    return use(nn.GroupNorm(num_groups=2, epsilon=1e-5), arrays["GroupNorm_0"], x)


def layer_norm(arrays, x):
    return use(nn.LayerNorm(epsilon=1e-5), arrays, x)


def embed(arrays, ids):
    return use(nn.Embed(*arrays["embedding"].shape), arrays, ids)


def small_cnn(p, x):
    x = nn.relu(nn.max_pool(convolve(p["body"]["Conv_0"], x, padding=1), (2, 2), (2, 2)))
    x = nn.relu(convolve(p["body"]["Conv_1"], x))
    x = nn.relu(dense(p["body"]["Dense_0"], x.reshape(len(x), -1)))
    return dense(p["head"], x)


def resnet(p, x):
    body = p["body"]
    x = nn.relu(group_norm(body["Normalize_0"], convolve(body["Conv_0"], x, padding=1)))
    for name, strides in (("BasicBlock_0", 1), ("BasicBlock_1", 2)):
        block = body[name]
        y = nn.relu(group_norm(block["Normalize_0"], convolve(block["Conv_0"], x, 1, strides)))
        y = group_norm(block["Normalize_1"], convolve(block["Conv_1"], y, 1))
        if "Conv_2" in block:
            x = group_norm(block["Normalize_2"], convolve(block["Conv_2"], x, 0, strides))
        x = nn.relu(x + y)
    return dense(p["head"], x.mean(axis=(1, 2)))


def mobilenet(p, x):
    body = p["body"]
    x = nn.relu6(group_norm(body["Normalize_0"], convolve(body["Conv_0"], x, 1)))
    for name, strides in (("InvertedBlock_0", 2), ("InvertedBlock_1", 1)):
        block = body[name]
        y = nn.relu6(group_norm(block["Normalize_0"], convolve(block["Conv_0"], x)))
        own = {"kernel": block["DepthwiseConv_0"]["kernel"][:, :, None]}
        y = nn.relu6(
            group_norm(block["Normalize_1"], convolve(own, y, 1, strides, groups=y.shape[-1]))
        )
        y = group_norm(block["Normalize_2"], convolve(block["Conv_1"], y))
        x = x + y if x.shape == y.shape else y
    x = nn.relu6(group_norm(body["Normalize_1"], convolve(body["Conv_1"], x)))
    return dense(p["head"], x.mean(axis=(1, 2)))


def attend_with_adapter(arrays, x):
    """Two heads; 1.5 times the adapter's outputs are added to keys and values."""
    adapter = arrays["adapter"]
    added = 1.5 * dense(adapter["Dense_1"], jnp.tanh(dense(adapter["Dense_0"], x)))
    query, *others = jnp.split(dense(arrays["Dense_0"], x), 3, axis=-1)
    pairs = zip(others, jnp.split(added, 2, axis=-1), strict=True)
    each = [query, *(old + new for old, new in pairs)]
    mixed = nn.dot_product_attention(*(part.reshape(*x.shape[:2], 2, -1) for part in each))
    return dense(arrays["Dense_1"], mixed.reshape(x.shape))


def attend(arrays, x, mask=None):
    if "adapter" in arrays:
        return attend_with_adapter(arrays, x)
    batch, steps, width = x.shape
    three = {}
    for i, name in enumerate(("query", "key", "value")):
        columns = slice(i * width, (i + 1) * width)
        three[name] = {
            "kernel": arrays["Dense_0"]["kernel"][:, columns].reshape(width, 2, width // 2),
            "bias": arrays["Dense_0"]["bias"][columns].reshape(2, width // 2),
        }
    out = arrays["Dense_1"]
    three["out"] = {"kernel": out["kernel"].reshape(2, width // 2, width), "bias": out["bias"]}
    return use(nn.MultiHeadDotProductAttention(2), three, x, mask=mask)


def block(arrays, x, mask=None):
    x = x + attend(arrays["Attention_0"], layer_norm(arrays["LayerNorm_0"], x), mask)
    hidden = nn.gelu(dense(arrays["Dense_0"], layer_norm(arrays["LayerNorm_1"], x)))
    return x + dense(arrays["Dense_1"], hidden)


def vit(p, x):
    body = p["body"]
    rows = [x[:, i : i + 2, j : j + 2].reshape(len(x), -1) for i in (0, 2) for j in (0, 2)]
    x = dense(body["Dense_0"], jnp.stack(rows, axis=1)) + body["positions"]["offset"]
    x = layer_norm(body["LayerNorm_0"], block(body["Blocks_0"], x))
    return dense(p["head"], x.mean(axis=1))


def transformer(p, ids):
    body, real = p["body"], ids != 0
    angles = [[t / 10000 ** (2 * (i // 2) / 4) for i in range(4)] for t in range(STEPS)]
    sines = [[(math.sin, math.cos)[i % 2](a) for i, a in enumerate(row)] for row in angles]
    x = embed(body["Embedding_0"], ids) + jnp.array(sines)
    x = block(body["Blocks_0"], x, nn.make_attention_mask(jnp.ones_like(real), real))
    x = layer_norm(body["LayerNorm_0"], x)
    return dense(p["head"], (x * real[..., None]).sum(axis=1) / real.sum(axis=1)[:, None])


def transformer_lm(p, ids):
    body, head = p["body"], p["head"]
    x = embed(body["tokens"], ids) + body["positions"]["offset"]
    x = layer_norm(head["LayerNorm_0"], block(body["Blocks_0"], x, nn.make_causal_mask(ids)))
    logits = use(nn.Embed(IDS, 4), body["tokens"], x, method=nn.Embed.attend)
    return logits + head["bias"]["offset"]


def lstms(p, ids):
    x = embed(p["body"]["Embedding_0"], ids)
    for name in ("Lstm_0", "Lstm_1"):
        own = p["body"][name]
        parts = {key: jnp.split(own[key], 4, axis=-1) for key in own}
        cell = {}
        for i, gate in enumerate("ifgo"):
            cell[f"i{gate}"] = {"kernel": parts["kernel"][i]}
            cell[f"h{gate}"] = {"kernel": parts["recurrent"][i], "bias": parts["bias"][i]}
        width = own["recurrent"].shape[0]
        x = use(nn.RNN(nn.OptimizedLSTMCell(width)), {"cell": cell}, x)
    return x


def lstm(p, ids):
    last = (ids != 0).sum(axis=1) - 1
    return dense(p["head"], lstms(p, ids)[jnp.arange(len(ids)), last])


def fasttext(p, ids):
    real = (ids != 0)[..., None]
    x = (embed(p["body"]["Embedding_0"], ids) * real).sum(axis=1) / real.sum(axis=1)
    return dense(p["head"], dense(p["body"]["Dense_0"], x))


def textcnn(p, ids):
    body = p["body"]
    x = embed(body["Embedding_0"], ids) * (ids != 0)[..., None]
    found = [nn.relu(convolve(body[f"TimeConv_{i}"], x)).max(axis=1) for i in range(2)]
    return dense(p["head"], jnp.concatenate(found, axis=-1))


def har_cnn(p, x):
    body = p["body"]
    for i in range(2):
        x = nn.max_pool(nn.relu(convolve(body[f"TimeConv_{i}"], x)), (2,), (2,))
    x = nn.relu(dense(body["HiddenLayers_0"]["Dense_0"], x.reshape(len(x), -1)))
    return dense(p["head"], x)


TEXT = {"vocabulary": IDS, "width": 4}
BLOCK = {**TEXT, "layers": 1, "heads": 2}
LSTM = {"vocabulary": IDS, "embedding": 3, "widths": (4, 5)}
LAYERS = ((4, 3, "SAME", True), (8, 3, "VALID", False))
STAGES = ((2, 6, 2, 2),)

# The model, the shape of an example, and the network of flax's layers.
CASES = {
    "cnn": (
        lambda s: from_flax(ConvolutionsAndDense(LAYERS, (5,)), Dense(3), s),
        (8, 7, 2),
        small_cnn,
    ),
    "resnet": (lambda s: from_flax(ResNet((4, 6), 1, "group"), Dense(3), s), (5, 4, 2), resnet),
    "mobilenet": (
        lambda s: from_flax(MobileNet(STAGES, 4, 8, "group"), Dense(3), s),
        (4, 4, 2),
        mobilenet,
    ),
    "vit": (lambda s: from_flax(ImageEncoder(2, 4, 1, 2), Dense(3), s), (4, 4, 2), vit),
    "vit_with_adapters": (
        lambda s: from_flax(ImageEncoder(2, 4, 1, 2, adapter_width=3), Dense(3), s),
        (4, 4, 2),
        vit,
    ),
    "har_cnn": (lambda s: models.MODELS["har_cnn"](s, 3, (4, 4), 3, (5,)), (14, 2), har_cnn),
    "fasttext": (lambda s: models.MODELS["fasttext"](s, 3, **TEXT), (STEPS,), fasttext),
    "textcnn": (
        lambda s: models.MODELS["textcnn"](s, 3, **TEXT, sizes=(2, 3), features=3),
        (STEPS,),
        textcnn,
    ),
    "transformer": (lambda s: models.MODELS["transformer"](s, 3, **BLOCK), (STEPS,), transformer),
    "lstm": (lambda s: models.MODELS["lstm"](s, 3, **LSTM), (STEPS,), lstm),
    "lstm_lm": (
        lambda s: models.MODELS["lstm_lm"](s, IDS, **LSTM),
        (STEPS,),
        lambda p, ids: dense(p["head"], lstms(p, ids)),
    ),
    "transformer_lm": (
        lambda s: models.MODELS["transformer_lm"](s, IDS, **BLOCK),
        (STEPS,),
        transformer_lm,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_plain_flax_with_weights_per_client(name):
    make, shape, network = CASES[name]
    model = make(shape)
    draw = np.random.default_rng(0)
    each = (CLIENTS, ROWS)
    if model.reads_ids:
        inputs = draw.integers(1, IDS, (*each, *shape)).astype(np.int32)
        inputs[:, 1, 4:] = 0  # a text that ends earlier
    else:
        inputs = draw.normal(size=(*each, *shape)).astype(np.float32)
    if name.endswith("_lm"):
        task = tasks.next_token(model, num_classes=IDS)
        targets = draw.integers(1, IDS, (*each, STEPS))
        targets[:, 1, 3:] = 0
    else:
        task = tasks.classification(model, num_classes=3)
        targets = draw.integers(0, 3, each)
    mask = np.array([[True, True, False], [True, True, True]])
    parameters = jax.vmap(model.init)(jax.random.split(jax.random.key(0), CLIENTS))

    def ours(parameters, inputs, targets, mask):
        return task.loss(parameters, Batch(inputs, targets, mask), jax.random.key(0))

    def plain(parameters, inputs, targets, mask):
        logs = jax.nn.log_softmax(network(parameters, inputs))
        losses = -jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0]
        if losses.ndim == 2:
            real = targets != 0
            losses = (losses * real).sum(axis=1) / real.sum(axis=1)
        return (losses * mask).sum() / mask.sum()

    args = jax.tree.map(jnp.asarray, (parameters, inputs, targets, mask))
    together = jax.jit(jax.vmap(jax.value_and_grad(ours)))(*args)
    expected = jax.jit(lambda *a: jax.lax.map(lambda one: jax.value_and_grad(plain)(*one), a))(
        *args
    )
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=5e-6), together, expected
    )
