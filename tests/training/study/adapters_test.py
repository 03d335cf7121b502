"""Runs of an adapter: from a config, resumed with its base and with no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfljax
from pfljax import models, tasks
from pfljax.engine.clients import on_device
from pfljax.errors import UserError
from pfljax.models import params_file
from pfljax.training.run import loop
from pfljax.training.study import adapters, experiment
from pfljax.training.study.config import default_config


def config(**changes):
    made = default_config()
    settings = {
        "algorithm": "ditto",
        "rounds": 2,
        "eval_every": 2,
        "checkpoint_every": 1,
        "data.num_clients": 4,
        "data.alpha": 1.0,
        "adapter.name": "lora",
        "adapter.rank": 2,
        "engine.devices": 2,
        "engine.rounds_per_call": 2,
    }
    made.model.widths = (8, 8)
    made.update_from_flattened_dict(settings | changes)
    return made


@pytest.mark.parametrize("residence", ["device", "host"])
def test_a_run_is_resumed_with_its_base_and_with_no_other(tmp_path, residence):
    where = {"engine.residence": residence}
    loop.run(experiment.build(config(**where)), tmp_path)
    longer = config(**where, rounds=3)
    with pytest.raises(UserError, match="contains a run with another config: adapter.base_seed"):
        loop.run(experiment.build(config(**where, rounds=3, **{"adapter.base_seed": 1})), tmp_path)
    result = loop.run(experiment.build(longer), tmp_path, resume=True)
    assert result["rounds"] == 3


def test_a_base_in_a_file(tmp_path):
    whole = experiment.build(config(**{"adapter.name": "none"}))
    base = whole.task.init(jax.random.key(7))
    params_file.save(tmp_path / "base.npz", base)
    given = {"adapter.base": str(tmp_path / "base.npz")}
    built = experiment.build(config(**given))
    jax.tree.map(np.testing.assert_array_equal, built.inputs.frozen, base)
    state = built.programs.init(built.examples, jax.random.key(1))
    shared = on_device.to_host(state, built.dataset.num_clients).server.params
    jax.tree.map(np.testing.assert_array_equal, shared["head"], base["head"])
    new = experiment.build(config(**given, **{"adapter.head": "new"}))
    jax.tree.map(np.testing.assert_array_equal, new.inputs.frozen, {"body": base["body"]})
    fixed = experiment.build(config(**given, **{"adapter.head": "frozen"}))
    assert set(fixed.task.init(jax.random.key(0))) == {"body"}
    loop.run(built, tmp_path / "run")
    params_file.save(tmp_path / "base.npz", jax.tree.map(lambda leaf: 2 * leaf, base))
    with pytest.raises(UserError, match="other frozen parameters"):
        loop.run(experiment.build(config(**given, rounds=3)), tmp_path / "run", resume=True)


def test_prompts_from_a_config():
    with_prompts = config(**{"algorithm": "pfedpg", "adapter.name": "prompt", "adapter.tokens": 3})
    del with_prompts.model["widths"]
    with_prompts.model.update({"name": "vit", "width": 4, "layers": 1, "heads": 2})
    built = experiment.build(with_prompts)
    state = built.programs.init(built.examples, jax.random.key(0))
    server = on_device.to_host(state, built.dataset.num_clients).server
    shapes = {leaf.shape for leaf in jax.tree.leaves(server)}
    assert shapes == {(3, 4), (4, 4), (4, 3, 4), (4, 10), (10,)}


def test_training_starts_with_the_adapter_of_another_run(tmp_path):
    """Two stages: one adapter of all clients, from which each then trains its own."""
    common = loop.run(experiment.build(config(algorithm="fedavg")), tmp_path / "common")
    opened = pfljax.open_run(tmp_path / "common")
    opened.global_model().save(tmp_path / "common.safetensors")
    params = opened.global_model().params
    assert common["rounds"] == 2 and np.any(params["body"]["Dense_0"]["lora_b"])
    own = experiment.build(
        config(algorithm="local", **{"adapter.start": str(tmp_path / "common.safetensors")})
    )
    state = own.programs.init(own.examples, jax.random.key(1))
    first = on_device.to_host(state, own.dataset.num_clients).server
    jax.tree.map(np.testing.assert_array_equal, first, params)
    run = loop.run(own, tmp_path / "own")
    assert run["rounds"] == 2
    again = pfljax.open_run(tmp_path / "own").client(0)
    again.save(tmp_path / "client.safetensors")
    (tmp_path / "common.safetensors").unlink()
    loaded = pfljax.load_model(tmp_path / "client.safetensors")
    inputs = own.dataset.inputs[:2]
    np.testing.assert_array_equal(loaded.outputs(inputs), again.outputs(inputs))
    with pytest.raises(UserError, match="common.safetensors cannot be read"):
        experiment.build(config(**{"adapter.start": str(tmp_path / "common.safetensors")}))


def test_the_model_of_a_run_is_a_base(tmp_path):
    """A base that all clients have trained with FedAvg, and its head."""
    settings = {"algorithm": "fedavg", "adapter.name": "none"}
    loop.run(experiment.build(config(**settings)), tmp_path / "base")
    trained = pfljax.open_run(tmp_path / "base").global_model()
    trained.save(tmp_path / "base.safetensors")
    built = experiment.build(config(**{"adapter.base": str(tmp_path / "base.safetensors")}))
    jax.tree.map(np.testing.assert_array_equal, built.inputs.frozen, trained.params)
    inputs = jnp.asarray(built.dataset.inputs[:2], jnp.float32)
    make, inputs_of_programs = built.make, built.inputs
    task = make(*inputs_of_programs).methods[0].task
    outputs = task.predict(task.init(jax.random.key(3)), inputs)
    np.testing.assert_allclose(outputs, trained.outputs(inputs), rtol=1e-6)


def test_a_checkpoint_holds_no_frozen_parameter():
    built = experiment.build(config())
    state = built.programs.init(built.examples, jax.random.key(0))
    host = on_device.to_host(state, built.dataset.num_clients)
    frozen = sum(leaf.size for leaf in jax.tree.leaves(built.inputs.frozen))
    of_server = sum(leaf.size for leaf in jax.tree.leaves(host.server))
    assert of_server < frozen / 2


@pytest.mark.parametrize("name", adapters.ADAPTERS)
def test_every_kind_is_made_from_its_keys(name):
    network = models.MODELS["transformer"]((6,), 3, vocabulary=9, width=8, layers=1, heads=2)
    settings = default_config().adapter
    settings.name, settings.tokens, settings.width = name, 3, 5
    settings.layers, settings.input_layers = "", "Dense_0$"
    model, freeze, frozen = adapters.build(settings, network)
    task = freeze(tasks.classification(model, num_classes=3), frozen)
    params = jax.eval_shape(task.init, jax.random.key(0))
    head = jax.eval_shape(network.init, jax.random.key(0))["head"]
    assert jax.tree.map(jnp.shape, params["head"]) == jax.tree.map(jnp.shape, head)
    leaves = jax.tree.leaves(params.get("body", {}))
    sizes = {
        "none": None,
        "head": 0,
        "prompt": 3 * 8,
        "user_token": 8,
        "prefix": 2 * 3 * 8,
        "basis": 4 * 4,
        "ia3": 4 * 8,  # of all four layers, inputs or outputs
    }
    if sizes.get(name) is not None:
        assert sum(leaf.size for leaf in leaves) == sizes[name]
    if name != "none":
        assert all(model.is_adapter(path) for path in paths_of(params.get("body", {})))


def paths_of(body):
    leaves = jax.tree.leaves_with_path({"body": body})
    return [tuple(part.key for part in path) for path, _ in leaves]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter.name": "lorra"}, "Did you mean 'lora'"),
        ({"adapter.rank": 0}, "config.adapter.rank is 0"),
        ({"algorithm": "pfedpg"}, "pFedPG needs a Transformer with prompts; set config.model"),
        ({"adapter.tokens": 0}, "config.adapter.tokens is 0"),
        ({"adapter.head": "fresh"}, "head 'fresh'"),
        ({"adapter.name": "head", "adapter.head": "frozen"}, "nothing to train"),
        ({"adapter.name": "prompt"}, "needs a Transformer"),
        ({"adapter.input_layers": "["}, "config.adapter.input_layers is '\\['"),
        ({"algorithm": "fedrap"}, "adapter.head=new"),
        ({"adapter.layers": "("}, "no regular expression"),
        ({"adapter.layers": "nothing"}, "select some of body/Dense_0, body/Dense_1, head in"),
        ({"adapter.base": "nothing.npz"}, "nothing.npz cannot be read"),
        ({"model.name": "mlp_bn"}, "may have no batch normalization"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(UserError, match=message):
        experiment.build(config(**changes))


def test_the_adapter_of_a_trained_network_is_the_private_part():
    """A number for each class and client beside common logits."""
    where = {"adapter.name": "bias", "adapter.layers": "head", "adapter.network": "trained"}
    built = experiment.build(config(algorithm="fedper", **where))
    assert built.inputs.frozen == ()
    state = built.programs.init(built.examples, jax.random.key(0))
    first = on_device.to_host(state, built.dataset.num_clients)
    assert jax.tree.map(jnp.shape, first.clients) == {"head": {"bias_change": (4, 10)}}
    shared = first.server.average.params
    assert set(shared["head"]) == {"kernel", "bias"} and set(shared["body"]) == {
        "Dense_0",
        "Dense_1",
    }
    # The common model does not change with the users' numbers: they are added to its logits.
    theta = built.task.init(jax.random.key(1))
    inputs = jnp.ones((2, 8, 8, 1))
    moved = {**theta, "head": {**theta["head"], "bias_change": jnp.arange(10.0)}}
    difference = built.task.predict(moved, inputs) - built.task.predict(theta, inputs)
    np.testing.assert_allclose(difference, np.tile(np.arange(10.0), (2, 1)), atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"adapter.name": "none"}, "is no adapter beside the network"),
        ({"adapter.base": "base.npz"}, "config.adapter.base is 'base.npz'"),
        ({"adapter.head": "new"}, "config.adapter.head is 'new'"),
        ({"adapter.network": "frosen"}, "Did you mean 'frozen'"),
    ],
)
def test_mistakes_with_a_trained_network(changes, message):
    with pytest.raises(UserError, match=message):
        experiment.build(config(**({"adapter.network": "trained"} | changes)))
