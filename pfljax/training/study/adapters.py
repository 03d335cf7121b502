"""From a config to a model whose parameters are frozen but for an adapter."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable

import jax
import ml_collections

from pfljax import models
from pfljax.core import Params
from pfljax.errors import UserError
from pfljax.models import adapters, params_file
from pfljax.training.study import config as config_lib

ADAPTERS = ("none", "lora", "prompts")


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a `UserError` for a `config.adapter` that cannot be used."""
    config_lib.require_known("adapter.name", config.name, ADAPTERS)
    config_lib.require_whole("config.adapter.rank", config.rank, 1)
    config_lib.require_whole("config.adapter.length", config.length, 1)
    config_lib.require_whole("config.adapter.base_seed", config.base_seed, 0)
    try:
        re.compile(config.layers)
    except re.error as error:
        raise UserError(
            f"config.adapter.layers is {config.layers!r}, which is no regular expression ({error})."
        ) from error


def build(
    config: ml_collections.ConfigDict, model: models.Model
) -> tuple[Callable[[Params], models.Model], Params]:
    """Returns a model as a function of its frozen parameters, and these.

    Args:
      config: `config.adapter` of the run.
      model: The network.

    Returns:
      `frozen -> model`, and the frozen parameters: `()` where all are trained.

    Raises:
      UserError: the model has no layer to adapt, or the file of the base cannot be used.
    """
    check(config)
    if config.name == "none":
        return lambda frozen: model, ()
    shapes = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0))
    if config.base:
        base = params_file.load(pathlib.Path(config.base), shapes)
    else:
        base = jax.jit(model.init)(jax.random.key(config.base_seed))

    def is_adapted(path):
        return re.search(config.layers, "/".join(path)) is not None

    if config.name == "prompts":
        adapter = adapters.prompts(model, length=config.length)
    else:
        adapter = adapters.lora(model, rank=config.rank, scale=config.scale, is_adapted=is_adapted)
    return adapter.model, adapter.freeze(base)
