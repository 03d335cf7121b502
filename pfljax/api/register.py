"""Registers methods, networks, data sets and metrics of the user."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from pfljax import data, extensions, metrics, models
from pfljax.algorithms import ALGORITHMS
from pfljax.algorithms.registry import Method, checked
from pfljax.errors import UserError
from pfljax.tasks import TASKS
from pfljax.training.study import config_values
from pfljax.training.study.config import default_config, hyperparameters


def register_method(
    factory: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    title: str = "",
    year: int | None = None,
    tags: Sequence[str] = (),
    needs: Sequence[str] = (),
) -> Callable[..., Any]:
    """Registers a method, so that its name works like those of the package.

    Args:
      factory: `(task, local, *, hyper-parameters) -> Algorithm`; the defaults of hyper-parameters
        are numbers, bools or strings. None returns a decorator.
      name: The name of the method; that of the factory by default.
      title: The name of the method in sentences and tables.
      year: The year of its paper.
      tags: Families to which the method belongs, of `pfljax.algorithms.TAGS`.
      needs: What it cannot be used without, keys of `pfljax.algorithms.NEEDS`.

    Returns:
      The factory.

    Raises:
      UserError: The name is taken, or a hyper-parameter cannot be set by a config.

    Example:
      >>> import pfljax
      >>> from pfljax.algorithms.fedprox import fedprox
      >>> @pfljax.register_method
      ... def fedprox_twice(task, local, *, mu: float = 0.1):
      ...     return fedprox(task, local, mu=2 * mu)
      >>> pfljax.default_config().hparams.fedprox_twice.mu
      0.1
    """
    if factory is None:
        return lambda factory: register_method(
            factory, name=name, title=title, year=year, tags=tags, needs=needs
        )
    named = name or factory.__name__
    parameters = list(inspect.signature(factory).parameters.values())
    if [each.name for each in parameters[:2]] != ["task", "local"]:
        raise UserError(
            f"The method {named} must be a function (task, local, *, hyper-parameters) of the "
            "task and of the clients' local training."
        )
    taken = {each.name for each in parameters} & set(default_config())
    if taken:
        raise UserError(
            f"The method {named} has a hyper-parameter {min(taken)!r}, which is a key of all "
            "configs: rename it."
        )
    try:
        row = Method(checked(factory), title, year, tuple(tags), frozenset(needs))
    except ValueError as error:
        raise UserError(f"The method {named}: {error}") from error
    hyperparameters(factory)
    extensions.register("method", ALGORITHMS, named, row)
    return factory


def register_model(factory: Callable[..., Any], *, name: str | None = None) -> Callable[..., Any]:
    """Registers a network.

    Args:
      factory: `(shape, outputs, **arguments) -> Model`, with the shape of one example, the number
        of outputs, and further arguments with defaults; `from_flax` makes a `Model` of two flax
        modules.
      name: The name of the network; that of the factory by default.

    Returns:
      The factory, so that this function is also a decorator.

    Raises:
      UserError: The name is taken.

    Example:
      >>> import pfljax
      >>> from pfljax.models import mlp
      >>> @pfljax.register_model
      ... def wide_mlp(shape, outputs, width: int = 512):
      ...     return mlp(shape, outputs, widths=(width,))
      >>> pfljax.fit("local", "digits", rounds=1, model={"name": "wide_mlp", "width": 8}).result[
      ...     "model"]
      'wide_mlp'
    """
    named = name or factory.__name__
    if len(inspect.signature(factory).parameters) < 2:
        raise UserError(
            f"The network {named} must be a function (shape, outputs, **arguments) -> Model."
        )
    extensions.register("network", models.MODELS, named, factory)
    return factory


def register_dataset(loader: Callable[..., Any], *, name: str | None = None) -> Callable[..., Any]:
    """Registers a data set, which configs partition among clients.

    Args:
      loader: `(dir, *, options) -> pool`, with the directory of `config.data.dir` and options whose
        defaults are numbers, bools or strings; `pool_from_arrays` makes the pool.
      name: The name of the data set; that of the loader by default.

    Returns:
      The loader, so that this function is also a decorator.

    Raises:
      UserError: The name is taken, or an option cannot be set by a config.

    Example:
      >>> import numpy as np
      >>> import pfljax
      >>> @pfljax.register_dataset
      ... def coin(dir, *, size: int = 100):
      ...     draws = np.random.default_rng(0).normal(size=(size, 2))
      ...     return pfljax.pool_from_arrays(draws, draws[:, 0] > 0, name="coin")
      >>> pfljax.load_dataset("coin", partition="iid", num_clients=5).num_clients
      5
    """
    named = name or loader.__name__
    if len(inspect.signature(loader).parameters) < 1:
        raise UserError(f"The loader of the data set {named} must be a function (dir, *, options).")
    hyperparameters(loader)
    if named in data.GIVEN:
        raise UserError(f"pfljax has a data set {named!r} already: choose another name.")
    extensions.register("data set", data.SOURCES, named, loader)
    return loader


def register_metric(
    compute: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    title: str = "",
    tasks: Sequence[str] = ("classification",),
    more_is_better: bool = True,
    percent: bool = False,
) -> Callable[..., Any]:
    """Registers a metric of all outputs of one client, which `metrics=('NAME',)` computes.

    Args:
      compute: `(outputs [n, ...], targets [n, ...], mask [n]) -> []`, a number for one client, in
        JAX operations; rows whose mask is False are padding and must not count. NaN where the
        metric is undefined. None returns a decorator.
      name: The name of the metric; that of the function by default.
      title: The name in tables and plots; the name of the metric by default.
      tasks: The kinds of tasks that it is for.
      more_is_better: Whether a larger value is better.
      percent: Whether tables and plots show percents.

    Returns:
      The function.

    Raises:
      UserError: The name is taken, or there is no such task.

    Example:
      >>> import jax.numpy as jnp
      >>> import pfljax
      >>> @pfljax.register_metric(title="top-2 accuracy", percent=True)
      ... def top2(outputs, targets, mask):
      ...     own = jnp.take_along_axis(outputs, targets[:, None], axis=1)
      ...     found = jnp.sum(outputs > own, axis=1) < 2
      ...     return jnp.sum(found * mask) / jnp.sum(mask)
      >>> run = pfljax.fit("local", "digits", rounds=1, metrics=("top2",))
      >>> bool(run.per_client()["personal_test_top2"].between(0, 1).all())
      True
    """
    if compute is None:
        return lambda compute: register_metric(
            compute,
            name=name,
            title=title,
            tasks=tasks,
            more_is_better=more_is_better,
            percent=percent,
        )
    named = name or compute.__name__
    for task in tasks:
        config_values.require_known(f"task of the metric {named}", task, TASKS)
    metric = metrics.Metric(compute, tuple(tasks), title or named, more_is_better, percent)
    extensions.register("metric", metrics.METRICS, named, metric)
    return compute
