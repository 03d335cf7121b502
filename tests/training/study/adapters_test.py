"""Runs of an adapter: from a config, resumed with its base and with no other."""

import jax
import numpy as np
import pytest

from pfljax.engine.clients import on_device
from pfljax.errors import UserError
from pfljax.models import params_file
from pfljax.training.run import loop
from pfljax.training.study import experiment
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
    jax.tree.map(np.testing.assert_array_equal, built.inputs.frozen, {"body": base["body"]})
    loop.run(built, tmp_path / "run")
    params_file.save(tmp_path / "base.npz", jax.tree.map(lambda leaf: 2 * leaf, base))
    with pytest.raises(UserError, match="other frozen parameters"):
        loop.run(experiment.build(config(**given, rounds=3)), tmp_path / "run", resume=True)


def test_prompts_from_a_config():
    with_prompts = config(**{"algorithm": "pfedpg", "adapter.name": "prompts", "adapter.length": 3})
    del with_prompts.model["widths"]
    with_prompts.model.update({"name": "vit", "width": 4, "layers": 1, "heads": 2})
    built = experiment.build(with_prompts)
    state = built.programs.init(built.examples, jax.random.key(0))
    server = on_device.to_host(state, built.dataset.num_clients).server
    shapes = {leaf.shape for leaf in jax.tree.leaves(server)}
    assert shapes == {(3, 4), (4, 4), (4, 3, 4), (4, 10), (10,)}


def test_a_checkpoint_holds_no_frozen_parameter():
    built = experiment.build(config())
    state = built.programs.init(built.examples, jax.random.key(0))
    host = on_device.to_host(state, built.dataset.num_clients)
    frozen = sum(leaf.size for leaf in jax.tree.leaves(built.inputs.frozen))
    of_server = sum(leaf.size for leaf in jax.tree.leaves(host.server))
    assert of_server < frozen / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter.name": "lorra"}, "Did you mean 'lora'"),
        ({"adapter.rank": 0}, "config.adapter.rank is 0"),
        ({"adapter.length": 0}, "config.adapter.length is 0"),
        ({"adapter.name": "prompts"}, "Prompts need one position"),
        ({"algorithm": "pfedpg"}, "pFedPG needs a Transformer with prompts; set config.model"),
        ({"adapter.layers": "("}, "no regular expression"),
        ({"adapter.layers": "nothing"}, "Name some in config.adapter.layers"),
        ({"adapter.base": "nothing.npz"}, "nothing.npz cannot be read"),
        ({"model.name": "mlp_bn"}, "no model with batch normalization"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(UserError, match=message):
        experiment.build(config(**changes))
