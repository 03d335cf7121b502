"""Low-rank adapters and prompts: their equations, what they train, and what is refused."""

import federation
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import models, tasks
from pfljax.core.params import join_params
from pfljax.errors import UserError
from pfljax.models import adapters, params_file
from pfljax.models.attention import Blocks

NETWORK = models.mlp((5,), 3, widths=(6, 4))
RANK, SCALE = 2, 0.5


def adapted(**options):
    lora = adapters.lora(NETWORK, rank=RANK, scale=SCALE, **options)
    base = NETWORK.init(jax.random.key(0))
    return lora, base, lora.freeze(base)


def random_like(params):
    leaves, structure = jax.tree.flatten(params)
    draw = np.random.default_rng(0)
    drawn = [draw.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, drawn)


def test_outputs_are_those_of_the_updated_matrices():
    lora, base, frozen = adapted()
    model = lora.model(frozen)
    params = random_like(model.init(jax.random.key(1)))
    merged = jax.tree.map(jnp.asarray, join_params(frozen, {"head": params["head"]}))
    for name, layer in params["body"].items():
        kernel = merged["body"][name]["kernel"] + SCALE * layer["lora_a"] @ layer["lora_b"]
        merged["body"][name] = {**merged["body"][name], "kernel": kernel}
    x = jnp.asarray(np.random.default_rng(1).normal(size=(7, 5)), jnp.float32)
    mask = jnp.ones(7, bool)
    features = model.features(params, x, mask)
    np.testing.assert_allclose(features, NETWORK.features(merged, x), rtol=1e-4)
    outputs = NETWORK.head(merged, features)
    np.testing.assert_allclose(model.head(params, features), outputs, rtol=1e-5)


def test_a_new_adapter_changes_no_feature():
    lora, base, frozen = adapted()
    model = lora.model(frozen)
    x = jnp.ones((2, 5))
    params = model.init(jax.random.key(1))
    np.testing.assert_array_equal(model.features(params, x), NETWORK.features(base, x))


def test_what_is_trained():
    lora, base, frozen = adapted()
    params = lora.model(frozen).init(jax.random.key(1))
    assert set(params) == {"body", "head"} and set(frozen) == {"body"}
    assert jax.tree.map(jnp.shape, params["head"]) == jax.tree.map(jnp.shape, base["head"])
    for name, layer in params["body"].items():
        inputs, outputs = base["body"][name]["kernel"].shape
        shapes = {key: array.shape for key, array in layer.items()}
        assert shapes == {"lora_a": (inputs, RANK), "lora_b": (RANK, outputs)}
    assert set(params["body"]) == set(base["body"])
    first = min(base["body"])
    one, _, frozen = adapted(is_adapted=lambda path: path[-1] == first)
    assert set(one.model(frozen).init(jax.random.key(1))["body"]) == {first}
    everything, _, frozen = adapted(is_trained=lambda path: False)
    model = everything.model(frozen)
    assert set(model.init(jax.random.key(1))["head"]) == {"lora_a", "lora_b"}
    assert model.layers == NETWORK.layers


def test_clients_share_the_product_with_the_frozen_matrix():
    """No array of the size of all clients' matrices is made."""
    network = models.mlp((5,), 3, widths=(64,))
    lora = adapters.lora(network, rank=1)
    frozen = lora.freeze(network.init(jax.random.key(0)))
    clients = 11

    def losses(frozen, params, x):
        model = lora.model(frozen)
        return jax.vmap(jax.grad(lambda p: jnp.sum(model.features(p, x) ** 2)))(params)

    keys = jax.random.split(jax.random.key(1), clients)
    params = jax.vmap(lora.model(frozen).init)(keys)
    jaxpr = jax.make_jaxpr(losses)(frozen, params, jnp.ones((2, 5)))
    lowered = jax.jit(losses).lower(frozen, params, jnp.ones((2, 5)))
    assert f"{clients},5,64" not in lowered.compile().as_text()
    assert jaxpr.out_avals


def test_refusals():
    with pytest.raises(UserError, match="batch normalization"):
        adapters.lora(models.mlp_bn((5,), 3, widths=(4,)), rank=1)
    with pytest.raises(UserError, match="No layer .* its layers are body/"):
        adapters.lora(NETWORK, rank=1, is_adapted=lambda path: False)


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


def prompted(length=3):
    """A small vision Transformer with prompts, and its frozen parameters."""
    network = models.MODELS["vit"]((4, 6, 1), 3, patch=2, width=4, layers=2, heads=2)
    return network, adapters.prompts(network, length=length), network.init(jax.random.key(0))


def test_prompts_are_tokens_before_the_patches():
    network, adapter, base = prompted()
    model = adapter.model(adapter.freeze(base))
    params = random_like(model.init(jax.random.key(1)))
    images = np.random.default_rng(1).normal(size=(5, 4, 6, 1)).astype(np.float32)
    body = base["body"]
    patches = images.reshape(5, 2, 2, 3, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(5, 6, 4)
    tokens = patches @ body["Dense_0"]["kernel"] + body["Dense_0"]["bias"]
    tokens += body["positions"]["offset"]
    own = np.broadcast_to(params["body"]["prompts"]["tokens"], (5, 3, 4))
    mixed = Blocks(2, 2).apply({"params": body["Blocks_0"]}, jnp.concatenate([own, tokens], axis=1))
    norm = nn.LayerNorm(epsilon=1e-5).apply({"params": body["LayerNorm_0"]}, mixed)
    features = jnp.mean(norm[:, 3:], axis=1)
    np.testing.assert_allclose(model.features(params, images), features, rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(features - network.features(base, images))) > 1e-3
    outputs = features @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(model.head(params, features), outputs, rtol=1e-5, atol=1e-6)


def test_what_is_trained_with_prompts():
    _, adapter, base = prompted(length=7)
    model, frozen = adapter.model(adapter.freeze(base)), adapter.freeze(base)
    params = model.init(jax.random.key(1))
    assert jax.tree.map(jnp.shape, params["body"]) == {"prompts": {"tokens": (7, 4)}}
    assert jax.tree.structure(params["head"]) == jax.tree.structure(base["head"])
    assert jax.tree.structure(frozen) == jax.tree.structure({"body": base["body"]})
    assert model.layers == (("body", "prompts"), ("head",))
    assert model.is_prompt(("body", "prompts", "tokens")) and not model.is_prompt(("head", "bias"))
    towers = models.MODELS["two_tower"]((4, 4, 1), 3, 2, 4, 1, 2, 4)
    model = adapters.prompts(towers, length=2).model(towers.init(jax.random.key(0)))
    assert jax.tree.map(jnp.shape, model.init(jax.random.key(1))) == {
        "head": {"prompts": {"tokens": (2, 4)}}
    }
    with pytest.raises(
        UserError, match="one position in a model, and this one has 0; name a vision"
    ):
        adapters.prompts(NETWORK, length=2)
    with pytest.raises(UserError, match="batch normalization"):
        adapters.prompts(models.mlp_bn((5,), 3, widths=(4,)), length=2)


@pytest.mark.parametrize("name", ["local", "fedavg", "fedrep", "ditto"])
def test_methods_train_adapters_as_they_train_models(name):
    network = models.mlp((federation.NUM_FEATURES,), federation.NUM_CLASSES, widths=(4,))
    lora = adapters.lora(network, rank=RANK)
    frozen = lora.freeze(network.init(jax.random.key(5)))
    task = tasks.classification(lora.model(frozen), num_classes=federation.NUM_CLASSES)
    algorithm = federation.ALGORITHMS[name](task, federation.local_training())
    outcome = federation.run(algorithm, score=task)
    before = outcome.untrained_scores["personal"]["test"]["loss"].sum()
    assert outcome.scores["personal"]["test"]["loss"].sum() < before
    held = jax.tree_util.tree_leaves_with_path((outcome.server, outcome.clients))
    body = [path for path, _ in held if any(getattr(part, "key", None) == "body" for part in path)]
    assert body and {path[-1].key for path in body} == {"lora_a", "lora_b"}
