"""Arguments of models on the command line, and the nearest key to a mistyped one."""

import inspect

import pytest

from pfljax import models
from pfljax.cli import command_line
from pfljax.errors import UserError
from pfljax.training.study.config import default_config
from pfljax.training.study.config_values import flat

KEYS = list(flat(default_config()))


def set_to(name, **arguments):
    config = default_config()
    config.model.name = name
    config.lock()
    command_line.set_model_arguments(
        config, {f"model.{key}": text for key, text in arguments.items()}
    )
    return config.model


@pytest.mark.parametrize("name", models.MODELS)
def test_every_argument_of_every_model_can_be_set_to_its_default(name):
    parameters = list(inspect.signature(models.MODELS[name]).parameters.items())[2:]
    defaults = {
        key: 5 if parameter.default is parameter.empty else parameter.default
        for key, parameter in parameters
    }
    found = set_to(name, **{key: str(value) for key, value in defaults.items()})
    for key, value in defaults.items():
        assert found[key] == value and type(found[key]) is type(value)


@pytest.mark.parametrize("text", ["(5,)", "5", "[5]", "5,"])
def test_widths_however_they_are_written(text):
    assert set_to("mlp", widths=text).widths == (5,)


@pytest.mark.parametrize(
    "name, key, text",
    [
        *(("mlp", "widths", text) for text in ("a", "(0,)", "(1.5,)", "-1", "(True,)", "((", "")),
        *(("vit", "patch", text) for text in ("(4,)", "4.0", "10**12", "99999999999")),
        ("matrix_factorization", "user_table", "maybe"),
        ("matrix_factorization", "vocabulary", "(3,)"),
    ],
)
def test_other_values_are_refused(name, key, text):
    with pytest.raises(UserError, match=rf"config.model.{key} is .*it must be"):
        set_to(name, **{key: text})


def test_what_is_taken_out_of_a_command_line():
    words = ["a", "-config.model.x", "3", "--config.model.y", "--noconfig.model.z", "--b"]
    rest, found = command_line.split_model_arguments([*words, "--config.model.name=mlp"])
    assert rest == ["a", "--b", "--config.model.name=mlp"]
    assert found == {"model.x": "3", "model.y": "true", "model.z": "false"}


@pytest.mark.parametrize(
    "word, key",
    [
        ("lr", "client_optimizer.learning_rate"),
        ("learning_rate", "client_optimizer.learning_rate"),
        ("bs", "batch_size"),
        ("epochs", "local_epochs"),
        ("num_rounds", "rounds"),
        ("clients", "data.num_clients"),
        ("dataset", "data.name"),
        ("method", "algorithm"),
        ("data.nun_clients", "data.num_clients"),
        ("hparams.pfedme.lamb", "hparams.pfedme.lam"),
        ("ditto.lam", "hparams.ditto.lam"),
        ("engine.chunk", "engine.clients_per_chunk"),
    ],
)
def test_the_nearest_key(word, key):
    with pytest.raises(UserError) as refusal:
        command_line.require_known_keys([f"--config.{word}=1"])
    assert f"Unknown config key '{word}'. Did you mean {key}?" in str(refusal.value)


def test_keys_that_there_are():
    known = ["data.alpha", "seeds[0]", "model.anything", "client_optimizer.b3", "engine.devices"]
    command_line.require_known_keys([f"--config.{key}=1" for key in known])
    command_line.require_known_keys(["--workdir=x", "--noconfig.drop_remainder", "config.lr"])
    with pytest.raises(UserError, match="'qqq'. --print_config lists all keys"):
        command_line.require_known_keys(["--config.qqq=1"])
