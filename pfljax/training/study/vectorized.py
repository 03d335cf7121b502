"""Vectorized runs: configs that differ in seeds and hyper-parameters, in one program."""

from __future__ import annotations

import collections
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from pfljax.core import Context
from pfljax.data import FederatedDataset
from pfljax.engine import mapping, programs
from pfljax.engine.clients.device_store import DeviceStore
from pfljax.errors import UserError
from pfljax.training.run import checkpoint, workdir
from pfljax.training.study import config_values, placement
from pfljax.training.study import experiment as experiment_lib
from pfljax.training.study.experiment import Experiment

# Keys that may differ between vectorized runs, besides the seed and the `hparams` of the method.
_OPTIMIZERS = ("client_optimizer", "server_optimizer")


def differences(configs: Sequence[ml_collections.ConfigDict]) -> dict[str, list[Any]]:
    """Returns the keys in which configs differ, with the values of all, without seeds.

    Example:
      >>> a = ml_collections.ConfigDict({'seed': 0, 'hparams': {'ditto': {'lam': 0.1}}})
      >>> b = ml_collections.ConfigDict({'seed': 1, 'hparams': {'ditto': {'lam': 0.5}}})
      >>> differences([a, b])
      {'hparams.ditto.lam': [0.1, 0.5]}
    """
    flat = [config_values.flat(config) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one)
    found = {key: [one.get(key) for one in flat] for key in keys if key != "seed"}
    return {key: values for key, values in found.items() if any(v != values[0] for v in values)}


def _values(configs: Sequence[ml_collections.ConfigDict], data_vary: bool) -> dict[str, jax.Array]:
    """Returns `{key: [runs]}`; raises a `UserError` for keys that cannot be traced."""
    values = differences(configs)
    if data_vary:
        values.pop("data.seed", None)
    own = configs[0].algorithm
    aggregators = (f"aggregation.{name}." for name in configs[0].aggregation.stages)
    optimizers = (f"{name}." for name in _OPTIMIZERS)
    allowed = (f"hparams.{own}.", f"learning_rates.{own}", *aggregators, *optimizers)
    for key, found in values.items():
        numbers = all(isinstance(v, bool | int | float) for v in found)
        if not key.startswith(allowed) or key.endswith(".decay") or not numbers:
            raise UserError(
                f"config.{key} cannot differ between vectorized runs; only hyper-parameters "
                "of the method, its aggregation and its optimizers can. Run it in a separate work "
                "directory."
            )
    return {key: jnp.asarray(found) for key, found in values.items()}


def build(
    configs: Sequence[ml_collections.ConfigDict],
    like: Experiment | None = None,
    datasets: Sequence[FederatedDataset] | None = None,
    clients_per_chunk: int | None = None,
) -> Experiment:
    """Checks configs and builds one experiment, whose programs train all runs at once.

    Args:
      configs: The configs of one method on one data set, with different seeds and values.
      datasets: The data set of each config, all of the same form; None if they share one.
      like: An experiment on the same data and model, to store and to measure them only once.
      clients_per_chunk: The client batch size of runs to resume, if the config leaves the choice;
        None for that of `like`.

    Returns:
      The first config's experiment with `num_runs` and programs for all.

    Raises:
      UserError: A config is invalid, or they differ in more than numbers.
    """
    for config in configs[1:]:
        experiment_lib.check(config)
    if configs[0].engine.residence == "host":
        raise UserError(
            "Runs with config.engine.residence='host' cannot be vectorized; run them separately."
        )
    given = () if like is None else (like.dataset, like.examples)
    if clients_per_chunk is None and like is not None:
        clients_per_chunk = like.clients_per_chunk
    # Built for single clients first, until the checks have passed.
    if datasets and not all(experiment_lib.same_form(datasets[0], one) for one in datasets):
        raise UserError(
            "The data sets of these seeds have different shapes and cannot be vectorized; run them "
            "separately, or on one partition with --config.seeds_vary=training."
        )
    for config, one in zip(configs, datasets or (), strict=bool(datasets)):
        if not experiment_lib.same_choice((configs[0], datasets[0]), (config, one)):
            raise UserError(
                "config.engine.eval_clients chooses different clients for each seed of the data, "
                "but vectorized runs evaluate the same ones; use 0 for all clients, or one "
                "partition with --config.seeds_vary=training."
            )
    bounds = experiment_lib.bounds_of(datasets) if datasets else None
    dataset, examples = given or (datasets[0] if datasets else None, None)
    first = experiment_lib.build(configs[0], dataset, examples, clients_per_chunk or 1, bounds)
    bounds = bounds or experiment_lib.bounds_of([first.dataset])
    values = _values(configs, datasets is not None)
    _require_traceable(first, values)
    if clients_per_chunk is None:
        first = experiment_lib.build(configs[0], first.dataset, first.examples, None, bounds)
    examples, options = first.examples, first.store.options
    if datasets:
        counts = first.uses_class_counts
        each = [
            placement.to_devices(one, options.devices, bounds, class_counts=counts)
            for one in datasets
        ]
        examples = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    on_cpu = options.devices[0].platform == "cpu"
    runs_at_once = programs.Vectorized(
        1 if on_cpu else len(configs), examples_vary=datasets is not None
    )
    clients = DeviceStore(
        examples,
        options,
        eval_ids=first.store.eval_ids,
        examples_vary=runs_at_once.examples_vary,
    )
    inputs = first.inputs._replace(values=mapping.replicate(values, options.devices))
    if datasets:
        held = [placement.server_data(one) for one in datasets]
        held = jax.tree.map(lambda *leaves: np.stack(leaves), *held)
        inputs = inputs._replace(server_data=mapping.replicate(held, options.devices))
    return first._replace(
        examples=examples,
        inputs=inputs,
        store=clients,
        programs=clients.programs(first.make, inputs, runs_at_once),
        num_runs=len(configs),
        examples_vary=runs_at_once.examples_vary,
    )


def _require_traceable(first: Experiment, values: dict[str, jax.Array]) -> None:
    """Raises a `UserError` if a number determines shapes or structure, before anything compiles."""

    def one_round(values, inputs, key, examples):
        for algorithm, _ in first.make(*inputs._replace(values=values)).methods:
            server = algorithm.init_server(examples.population(), key)
            profile = examples.profile(jnp.int32(0))
            client = algorithm.init_client(server, profile, key)
            context = Context(key, jnp.int32(0), jnp.int32(1), jnp.int32(0), key)
            data = examples.of_client(jnp.int32(0))
            algorithm.update_client(server, client, data, context)
            algorithm.personalize(server, client, data, context)

    # An error of the method itself also occurs with concrete numbers, and is reported as such.
    traced = (first.inputs, jax.random.key(0), first.examples)
    jax.eval_shape(functools.partial(one_round, {}), *traced)
    try:
        one = {key: found[0] for key, found in values.items()}
        jax.eval_shape(one_round, one, *traced)
    except (TypeError, IndexError) as error:  # raised by JAX where a number must be concrete
        raise UserError(
            f"One of {', '.join(f'config.{key}' for key in values)} determines the shape of "
            "arrays, so runs that differ in it cannot be vectorized; run them separately."
        ) from error


def group_by_round(directories: Sequence[pathlib.Path]) -> list[list[int]]:
    """Groups runs that can be resumed in one program: of the same round and client batch size.

    Args:
      directories: The work directories of the runs.

    Returns:
      The indices of the runs of each group, in their order.
    """
    groups = collections.defaultdict(list)
    for number, directory in enumerate(directories):
        progress = checkpoint.latest_round(directory), workdir.clients_per_chunk(directory)
        groups[progress].append(number)
    return list(groups.values())
