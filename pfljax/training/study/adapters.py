"""From a config to a model with an adapter, whose other parameters are frozen or trained too."""

from __future__ import annotations

import inspect
import pathlib
import re
from collections.abc import Callable

import jax
import ml_collections

from pfljax import models, tasks
from pfljax.core import Params, Path, Task
from pfljax.core.params import join_params, replace_params, split_params
from pfljax.errors import UserError
from pfljax.models import adapters, params_file
from pfljax.training.study import config_values

NONE, HEAD = "none", "head"  # all parameters are trained; only those of the head are
ADAPTERS = (NONE, HEAD, *adapters.KINDS)
HEADS = ("base", "new", "frozen")
FROZEN, TRAINED = NETWORKS = ("frozen", "trained")


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a `UserError` for a `config.adapter` that cannot be used."""
    config_values.require_known("adapter.name", config.name, ADAPTERS)
    config_values.require_known("adapter.head", config.head, HEADS)
    config_values.require_known("adapter.network", config.network, NETWORKS)
    for key in ("rank", "width", "tokens", "experts"):
        config_values.require_whole(f"config.adapter.{key}", config[key], 1)
    config_values.require_whole("config.adapter.base_seed", config.base_seed, 0)
    for key in ("layers", "input_layers"):
        try:
            re.compile(config[key])
        except re.error as error:
            raise UserError(
                f"config.adapter.{key} is {config[key]!r}, which is no regular expression "
                f"({error})."
            ) from error
    if config.network == TRAINED:
        if config.name in (NONE, HEAD):
            raise UserError(
                f"config.adapter.network is 'trained' and config.adapter.name is {config.name!r}, "
                "which is no adapter beside the network; name one, such as bias."
            )
        for key in ("base", "start"):
            if config[key]:
                raise UserError(
                    f"config.adapter.{key} is {config[key]!r}, and config.adapter.network is "
                    "'trained', which starts at random; set config.adapter.network=frozen."
                )
        if config.head != "base":
            raise UserError(
                f"config.adapter.head is {config.head!r}, and config.adapter.network is 'trained', "
                "which trains the head like all of it; set config.adapter.head=base."
            )
    if config.name == HEAD and config.head == "frozen":
        raise UserError(
            "config.adapter.name is 'head' and config.adapter.head is 'frozen', which leaves "
            "nothing to train; set config.adapter.head=base."
        )


def starts_at_random(config: ml_collections.ConfigDict) -> bool:
    """Whether models start with outputs that differ from seed to seed, given `config.adapter`."""
    if config.name == NONE or config.network == TRAINED:
        return True
    return config.head == "new" and not config.start


def build(
    config: ml_collections.ConfigDict, model: models.Model
) -> tuple[models.Model, Callable[[Task, Params], Task], Params]:
    """Returns a model with adapters, how its task is frozen, and the frozen parameters.

    Args:
      config: `config.adapter` of the run.
      model: The network.

    Returns:
      The network with adapters; `(task of it, frozen) -> task` whose params are the adapter's; and
      the frozen parameters, with the initial values of those that start with given ones. Without
      an adapter, the network, the same task, and `()`. With `config.adapter.network='trained'`, the
      adapter is the part of the network that methods with personalized heads keep private.

    Raises:
      UserError: The model has no layer to adapt, or a file cannot be used.
    """
    check(config)
    if config.name == NONE:
        return model, lambda task, frozen: task, ()
    adapted = model
    if config.name != HEAD:
        selected = (
            _matches(config.layers) if config.layers else lambda path: not model.is_head(path)
        )
        adapted = adapters.attach(model, _kind(config), selected)
    if config.network == TRAINED:
        return adapted._replace(is_head=adapted.is_adapter), lambda task, frozen: task, ()

    def is_trained(path: Path) -> bool:
        return adapted.is_adapter(path) or (adapted.is_head(path) and config.head != "frozen")

    def is_given(path: Path) -> bool:
        from_base = adapted.is_head(path) and config.head == "base"
        return not is_trained(path) or (from_base and not adapted.is_adapter(path))

    base = jax.jit(lambda key: split_params(adapted.init(key), is_given)[0])(
        jax.random.key(config.base_seed)
    )
    if config.base:
        shapes = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0))
        read = params_file.load(pathlib.Path(config.base), shapes)
        base = replace_params(base, split_params(read, is_given)[0])
    if config.start:
        shapes = jax.eval_shape(adapted.init, jax.eval_shape(jax.random.key, 0))
        trained = split_params(shapes, is_trained)[0]
        start = params_file.load(pathlib.Path(config.start), trained)
        base = join_params(split_params(base, lambda path: not is_trained(path))[0], start)
    return adapted, lambda task, frozen: tasks.freeze(task, frozen, is_trained), base


def _matches(pattern: str) -> Callable[[Path], bool]:
    """Returns `path of a layer -> bool`, whether a regular expression is found in the path."""
    return lambda path: re.search(pattern, "/".join(path)) is not None


def _kind(config: ml_collections.ConfigDict) -> adapters.Kind:
    """Returns the config's kind of adapter with those settings that it has."""
    factory = adapters.KINDS[config.name]
    settings = dict(config, scales_inputs=_matches(config.input_layers or "$^"))
    known = inspect.signature(factory).parameters
    return factory(**{name: settings[name] for name in known})
