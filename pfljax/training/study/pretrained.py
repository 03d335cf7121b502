"""From a config to a model whose training starts with params in a file."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from pfljax import models
from pfljax.core import Params, Task
from pfljax.errors import UserError
from pfljax.models import params_file


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a `UserError` if a config has two files of params."""
    if config.init_from and config.adapter.name != "none":
        raise UserError(
            f"config.init_from is {config.init_from!r} and config.adapter.name is "
            f"{config.adapter.name!r}, whose model is frozen; set config.adapter.base to the file, "
            "and remove config.init_from."
        )


def build(path: str, model: models.Model) -> tuple[Callable[[Task, Params], Task], Params]:
    """Returns how a task starts with given params, and the params of a file.

    Args:
      path: `config.init_from` of the run.
      model: The network.

    Returns:
      `(task, params) -> task`, whose `init` returns the params whatever the key, and the params of
      the file, as NumPy arrays.

    Raises:
      UserError: The file cannot be read, or has the params of another model.
    """
    shapes = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0))

    def starting_with(task, params):
        # Copies, as the state of a run is donated, and the arguments of its programs are not.
        return task._replace(init=lambda key: jax.tree.map(jnp.copy, params))

    return starting_with, params_file.load(pathlib.Path(path), shapes)
