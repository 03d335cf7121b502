"""Hyper-parameters that are networks: a config names their models, and drops nothing."""

import json

import jax
import pytest

from pfljax import core
from pfljax.cli import command_line
from pfljax.errors import UserError
from pfljax.training.run import loop
from pfljax.training.study import config as config_lib
from pfljax.training.study import experiment, vectorized

MENTEE = {"name": "mlp", "widths": (3,)}


def config(mentee=None, **changes):
    made = config_lib.default_config()
    settings = {
        "algorithm": "fedkd",
        "rounds": 1,
        "eval_every": 1,
        "data.num_clients": 3,
        "engine.devices": 1,
    }
    made.model.widths = (5,)
    made.update_from_flattened_dict(settings | changes)
    for key, value in (mentee or {}).items():
        made.hparams.fedkd.mentee[key] = value
    return made


@pytest.fixture(scope="module")
def dataset():
    return experiment.build_dataset(config())


def server_shapes(built):
    key = jax.random.key(0)
    return jax.eval_shape(built.algorithm.init_server, built.examples.population(), key).params


def test_the_config_names_the_mentee_and_its_arguments(dataset, tmp_path):
    own = config(MENTEE)
    built = experiment.build(own, dataset)
    assert server_shapes(built)["head"]["kernel"].shape == (3, 10)
    assert server_shapes(experiment.build(config(), dataset))["head"]["kernel"].shape == (5, 10)
    result = loop.run(built, tmp_path)
    assert result["hyperparameters"]["mentee"]["widths"] == (3,)
    assert result["global_accuracy"] is None  # The mentee is not of the clients' task.
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["hparams"]["fedkd"]["mentee"] == {"name": "mlp", "widths": [3]}
    seeds = vectorized.build([own, config(MENTEE, seed=1)], built)
    start = seeds.programs.init(built.examples, jax.random.split(jax.random.key(0)))
    assert start.server.params["head"]["kernel"].shape == (2, 3, 10)


@pytest.mark.parametrize(
    "mentee, message",
    [
        ({"name": "mpl"}, "Unknown model 'mpl'.* Did you mean 'mlp'?"),
        ({"name": "mlp", "widht": (3,)}, "argument of the model mlp 'widht'.*'widths'"),
        ({"widths": (3,)}, "config.hparams.fedkd.mentee.widths .*config.hparams.fedkd.mentee.name"),
        ({"name": "lstm"}, "set config.hparams.fedkd.mentee.vocabulary to the number of ids"),
    ],
)
def test_a_mentee_that_cannot_be_meant(dataset, mentee, message):
    with pytest.raises(UserError, match=message):
        experiment.build(config(mentee), dataset)


def test_the_command_line_sets_a_mentee():
    words = ["--config.hparams.fedkd.mentee.name=mlp", "--config.hparams.fedkd.mentee.widths=3"]
    command_line.require_known_keys(words)
    rest, found = command_line.split_model_arguments(words)
    assert rest == words[:1] and found == {"hparams.fedkd.mentee.widths": "3"}
    made = config({"name": "mlp"})
    command_line.set_model_arguments(made, found)
    assert made.hparams.fedkd.mentee.widths == (3,)
    assert "config.hparams.fedkd.mentee.widths = (3,)" in command_line.listing(made)
    with pytest.raises(UserError, match="set config.hparams.fedkd.mentee.name"):
        command_line.set_model_arguments(config(), found)
    with pytest.raises(UserError, match="set config.hparams.fedkd.mentee.name to the model"):
        command_line.require_known_keys(["--config.hparams.fedkd.mentee=mlp"])
    with pytest.raises(UserError, match="Unknown config key 'hparams.fedkd.mantee.widths'"):
        command_line.require_known_keys(["--config.hparams.fedkd.mantee.widths=3"])


def test_a_hyperparameter_that_no_config_can_set_is_not_dropped():
    def method(task, local, *, lam=0.5, other: core.Task | None = None):
        pass

    with pytest.raises(UserError, match="method: no config can set other"):
        config_lib.hyperparameters(method)
