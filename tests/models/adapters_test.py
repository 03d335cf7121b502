"""Adapters: their equations, what they leave unchanged at the start, and what is refused."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import models, tasks
from pfljax.core.params import join_params, split_params
from pfljax.errors import UserError
from pfljax.models import adapters, params_file
from pfljax.models.attention import Blocks

NETWORK = models.mlp((5,), 3, widths=(6, 4))
IDS = jnp.asarray([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 1]])
ENCODER = models.MODELS["transformer"]((6,), 3, vocabulary=9, width=8, layers=1, heads=2)
DECODER = models.MODELS["transformer_lm"]((6,), 9, vocabulary=9, width=8, layers=1, heads=2)
SETTINGS = {
    "lora": {"rank": 2, "scale": 0.5},
    "ia3": {"scales_inputs": lambda path: path[-1] == "Dense_1"},
    "bias": {},
    "houlsby": {"width": 3},
    "prefix": {"tokens": 2},
    "prompt": {"tokens": 2},
    "p_tuning": {"tokens": 2, "width": 5},
    "user_token": {},
    "hidden_map": {"rank": 2, "scale": 0.5},
    "basis": {"rank": 2, "scale": 0.5},
    "lora_mixture": {"rank": 2, "experts": 3, "scale": 0.5},
}
OF_TRANSFORMERS = {"prefix", "prompt", "p_tuning"}  # they differ from the base at the start


def random_like(params, seed=0):
    leaves, structure = jax.tree.flatten(params)
    draw = np.random.default_rng(seed)
    drawn = [draw.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, drawn)


def attached(kind, network):
    """The network with adapters, its params, and those of the network alone."""
    made = adapters.KINDS[kind](**SETTINGS[kind])
    model = adapters.attach(network, made)
    params = jax.jit(model.init)(jax.random.key(1))
    return model, params, split_params(params, lambda path: path[-1] not in made.names)[0]


@functools.cache
def compiled(model):
    return jax.jit(lambda params, x: model.head(params, model.features(params, x)))


def outputs(model, params, inputs):
    return compiled(model)(params, inputs)


def test_every_kind_has_settings_here():
    assert SETTINGS.keys() == adapters.KINDS.keys()


@pytest.mark.parametrize("kind", sorted(SETTINGS))
def test_a_new_adapter_leaves_the_network_as_it_is_bit_by_bit(kind):
    model, params, base = attached(kind, ENCODER)
    same = np.array_equal(outputs(model, params, IDS), outputs(ENCODER, base, IDS))
    assert same == (kind not in OF_TRANSFORMERS)
    moved = join_params(base, random_like(split_params(params, model.is_adapter)[0]))
    if kind == "basis":
        moved = join_params(moved, split_params(params, lambda p: p[-1][:5] == "basis")[0])
    assert np.all(outputs(model, moved, IDS) != outputs(ENCODER, base, IDS))


def dense_equation(kind, arrays, x, kernel, bias, second):
    """The output of a dense layer with an adapter, from the docstrings."""
    y = x @ kernel + bias
    if kind == "lora":
        return y + 0.5 * x @ (arrays["lora_a"] @ arrays["lora_b"])
    if kind == "ia3":
        scaled = (x * arrays["ia3_input"]) @ kernel + bias if second else y * arrays["ia3_output"]
        return scaled
    if kind == "bias":
        return y + arrays["bias_change"]
    if kind == "houlsby":
        hidden = nn.gelu(y @ arrays["down_kernel"] + arrays["down_bias"])
        return y + hidden @ arrays["up_kernel"] + arrays["up_bias"]
    if kind == "basis":
        update = sum(
            c * np.outer(a, b)
            for c, a, b in zip(
                arrays["coefficients"], arrays["basis_a"].T, arrays["basis_b"], strict=True
            )
        )
        return y + 0.5 * x @ update
    gates = jax.nn.softmax(x @ arrays["gate_kernel"] + arrays["gate_bias"], axis=-1)
    for number, (a, b) in enumerate(zip(arrays["expert_a"], arrays["expert_b"], strict=True)):
        y = y + 0.5 * gates[:, [number]] * (x @ (a @ b))
    return y


@pytest.mark.parametrize("kind", ["lora", "ia3", "bias", "houlsby", "basis", "lora_mixture"])
def test_dense_layers_follow_the_equation(kind):
    model, params, _ = attached(kind, NETWORK)
    params = random_like(params)
    x = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)
    expected = x
    for number, name in enumerate(sorted(params["body"])):
        arrays = dict(params["body"][name])
        kernel, bias = arrays.pop("kernel"), arrays.pop("bias")
        expected = nn.relu(dense_equation(kind, arrays, expected, kernel, bias, number == 1))
    features = model.features(params, x, jnp.ones(7, bool))
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert set(params["head"]) == {"kernel", "bias"}


def test_hidden_map_and_user_token():
    model, params, base = attached("hidden_map", NETWORK)
    own = {name: random_like(params["body"][name]) for name in ("map_a", "map_b")}
    params = {**params, "body": {**params["body"], **own}}
    x = jnp.ones((2, 5))
    h = NETWORK.features(base, x)
    update = np.eye(4) + 0.5 * own["map_a"] @ own["map_b"]
    np.testing.assert_allclose(model.features(params, x), h @ update, rtol=1e-4)

    model, params, base = attached("user_token", ENCODER)
    user = random_like(params["body"]["Embedding_0"]["user"])
    params["body"]["Embedding_0"]["user"] = user
    base["body"]["Embedding_0"]["embedding"] += user
    expected = ENCODER.features(base, IDS)
    np.testing.assert_allclose(model.features(params, IDS), expected, rtol=1e-4, atol=1e-5)


def numpy_attention(query, key, value):
    scores = np.einsum("thd,shd->hts", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    return np.einsum("hts,shd->thd", weights, value)


def test_a_prefix_adds_keys_and_values():
    class Alone(nn.Module):
        @nn.compact
        def __call__(self, x):
            split = x.reshape(x.shape[0], 3, 2, 4)
            mask = jnp.asarray([[True, True, False]] * x.shape[0])
            product = models.attention.AttentionProduct()
            return product(split, split + 1, split - 1, mask, None).reshape(x.shape[0], -1)

    network = models.from_flax(Alone(), nn.Dense(2), (24,))
    model = adapters.attach(network, adapters.prefix(tokens=5))
    params = model.init(jax.random.key(0))
    own = params["body"]["AttentionProduct_0"]
    x = np.random.default_rng(0).normal(size=(2, 24)).astype(np.float32)
    split = x.reshape(2, 3, 2, 4)
    for row, found in zip(split, model.features(params, x), strict=True):
        key = np.concatenate([own["prefix_key"], row[:2] + 1])
        value = np.concatenate([own["prefix_value"], row[:2] - 1])
        expected = numpy_attention(row, key, value)
        np.testing.assert_allclose(found, expected.reshape(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["prompt", "p_tuning", "prefix"])
def test_tokens_before_a_text_do_not_change_its_length_and_its_causality(kind):
    model, params, _ = attached(kind, DECODER)
    one = outputs(model, params, IDS)
    assert one.shape == (2, 6, 9)
    other = outputs(model, params, IDS.at[:, -1].set(2))
    np.testing.assert_array_equal(one[:, :-1], other[:, :-1])
    assert np.all(np.any(one[:, -1] != other[:, -1], axis=-1))


def test_p_tuning_is_the_prompt_that_its_network_computes():
    model, params, base = attached("p_tuning", DECODER)
    arrays = params["body"]["Tokens_0"]
    rows = arrays["encoder_embedding"]
    for number in (1, 2, 3):
        rows = rows @ arrays[f"encoder_kernel_{number}"] + arrays[f"encoder_bias_{number}"]
        rows = np.maximum(rows, 0) if number < 3 else rows
    prompted = adapters.attach(DECODER, adapters.prompt(tokens=2))
    same = join_params(base, {"body": {"Tokens_0": {"prompt": rows}}})
    expected = outputs(prompted, same, IDS)
    np.testing.assert_allclose(outputs(model, params, IDS), expected, rtol=1e-5, atol=1e-6)


def test_padding_does_not_read_a_prompt_differently():
    """A text has the features that it has without its padding."""
    shorter = models.MODELS["transformer"]((3,), 3, vocabulary=9, width=8, layers=1, heads=2)
    for kind in OF_TRANSFORMERS:
        model, params, _ = attached(kind, ENCODER)
        short = adapters.attach(shorter, adapters.KINDS[kind](**SETTINGS[kind]))
        found = model.features(params, IDS[:1])
        expected = short.features(params, IDS[:1, :3])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_adapters_of_two_kinds():
    first = adapters.attach(NETWORK, adapters.lora(rank=1))
    both = adapters.attach(first, adapters.ia3(), lambda path: path == ("head",))
    params = random_like(both.init(jax.random.key(0)))
    assert set(params["head"]) == {"kernel", "bias", "ia3_output"}
    assert both.is_adapter(("head", "ia3_output")) and both.is_adapter(
        ("body", "Dense_0", "lora_a")
    )
    assert not both.is_adapter(("head", "kernel"))
    x = jnp.ones((2, 5))
    of_first = split_params(params, lambda path: path[-1] != "ia3_output")[0]
    expected = outputs(first, of_first, x) * params["head"]["ia3_output"]
    np.testing.assert_allclose(outputs(both, params, x), expected, rtol=1e-6)


def test_layers_are_in_the_order_in_which_inputs_pass():
    layers = adapters.attach(ENCODER, adapters.prompt(tokens=1)).layers
    assert set(layers) - set(ENCODER.layers) == {("body", "Tokens_0")}
    assert [path for path in layers if path in ENCODER.layers] == list(ENCODER.layers)
    assert layers.index(("body", "Tokens_0")) == 1
    assert adapters.attach(NETWORK, adapters.lora(rank=1)).layers == NETWORK.layers


def test_clients_share_the_product_with_the_frozen_matrix():
    """No array of the size of all clients' matrices is made."""
    network = models.mlp((5,), 3, widths=(64,))
    task = tasks.classification(adapters.attach(network, adapters.lora(rank=1)), num_classes=3)
    base = network.init(jax.random.key(0))
    clients = 11

    def gradients(base, params, x):
        frozen = tasks.freeze(task, base, task.is_adapter)
        return jax.vmap(jax.grad(lambda p: jnp.sum(frozen.features(p, x) ** 2)))(params)

    keys = jax.random.split(jax.random.key(1), clients)
    params = jax.vmap(tasks.freeze(task, base, task.is_adapter).init)(keys)
    compiled = jax.jit(gradients).lower(base, params, jnp.ones((2, 5))).compile()
    assert f"{clients},5,64" not in compiled.as_text()
    assert f"{clients},2,64" in compiled.as_text()  # the outputs of all clients


def test_the_dtype_of_a_computation():
    short = models.compute_in(NETWORK, "bfloat16")
    model = adapters.attach(short, adapters.lora(rank=2))
    params = model.init(jax.random.key(0))
    assert model.features(params, jnp.ones((2, 5))).dtype == jnp.float32
    expected = short.features(
        split_params(params, lambda p: p[-1][:4] != "lora")[0], jnp.ones((2, 5))
    )
    np.testing.assert_array_equal(model.features(params, jnp.ones((2, 5))), expected)


def test_refusals():
    with pytest.raises(
        UserError, match="needs layers with a matrix.* some of body/Dense_0.*layers"
    ):
        adapters.attach(NETWORK, adapters.lora(rank=1), lambda path: False)
    with pytest.raises(UserError, match="needs a Transformer.*choose another model, or another"):
        adapters.attach(NETWORK, adapters.prompt(tokens=1))
    recurrent = models.MODELS["lstm"]((6,), 3, vocabulary=9, widths=(4,))
    with pytest.raises(UserError, match="layers with a matrix.* select some of head"):
        adapters.attach(recurrent, adapters.lora(rank=1))
    with pytest.raises(UserError, match="no example of its inputs"):
        adapters.attach(NETWORK._replace(example=None), adapters.bias())


def test_a_prompt_longer_than_the_table_of_positions():
    small = {"width": 8, "layers": 1, "heads": 2, "positions": 6}
    network = models.MODELS["gpt2"]((5,), 9, vocabulary=9, **small)
    with pytest.raises(UserError, match="positions is 6, and texts have 7 positions"):
        model = adapters.attach(network, adapters.prompt(tokens=2))
        jax.eval_shape(lambda key: model.features(model.init(key), IDS[:, :5]), jax.random.key(0))


def test_parameters_in_a_file(tmp_path):
    params, path = NETWORK.init(jax.random.key(0)), tmp_path / "base.npz"
    params_file.save(path, params)
    found = params_file.load(path, params)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    other = models.mlp((5,), 3, widths=(6, 5)).init(jax.random.key(0))
    with pytest.raises(UserError, match="base.npz .* of another model"):
        params_file.load(path, other)
    deeper = models.mlp((5,), 3, widths=(6, 4, 4)).init(jax.random.key(0))
    with pytest.raises(UserError, match="has no array"):
        params_file.load(path, deeper)
    with pytest.raises(UserError, match="that the model has not"):
        params_file.load(path, {"head": params["head"]})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read as parameters"):
        params_file.load(path, params)
    with pytest.raises(UserError, match="cannot be read as parameters"):
        params_file.load(tmp_path / "nothing.npz", params)


def test_prompts_are_tokens_before_the_patches():
    network = models.MODELS["vit"]((4, 6, 1), 3, patch=2, width=4, layers=2, heads=2)
    model, base = (
        adapters.attach(network, adapters.prompt(tokens=3)),
        network.init(jax.random.key(0)),
    )
    params = random_like(model.init(jax.random.key(1)))
    own = params["body"]["Tokens_0"]["prompt"]
    params = join_params(base, {"body": {"Tokens_0": {"prompt": own}}})
    images = np.random.default_rng(1).normal(size=(5, 4, 6, 1)).astype(np.float32)
    body = base["body"]
    patches = images.reshape(5, 2, 2, 3, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(5, 6, 4)
    tokens = patches @ body["Dense_0"]["kernel"] + body["Dense_0"]["bias"]
    tokens += body["positions"]["offset"]
    rows = np.broadcast_to(own, (5, 3, 4))
    mixed = Blocks(2, 2).apply(
        {"params": body["Blocks_0"]}, jnp.concatenate([rows, tokens], axis=1)
    )
    norm = nn.LayerNorm(epsilon=1e-5).apply({"params": body["LayerNorm_0"]}, mixed)
    features = jnp.mean(norm[:, 3:], axis=1)
    np.testing.assert_allclose(model.features(params, images), features, rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(features - network.features(base, images))) > 1e-3
    assert model.is_prompt(("body", "Tokens_0", "prompt"))
    assert not model.is_prompt(("head", "bias"))
