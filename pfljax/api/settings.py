"""From the keyword arguments of `fit`, `compare` and `sweep` to a config."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections

from pfljax import models
from pfljax.algorithms import ALGORITHMS
from pfljax.api.register import register_method, register_model
from pfljax.data import FederatedDataset, in_memory
from pfljax.errors import UserError
from pfljax.training.study import config as config_lib
from pfljax.training.study import config_checks, config_values

# A method or a network, by name or as a factory.
Named = str | Callable[..., Any]


def name_of_method(method: Named) -> str:
    """Returns the name of a method; a factory is registered first."""
    if callable(method) and not isinstance(method, str):
        return _registered(method, ALGORITHMS, register_method)
    config_values.require_known("algorithm", method, ALGORITHMS)
    return method


def _registered(factory: Callable[..., Any], registry: Mapping, register: Callable) -> str:
    """Returns the name of a factory, which may be an entry of the registry already."""
    for name, known in registry.items():
        if known is factory or getattr(known, "source", None) is factory:
            return name
        source = getattr(known, "source", None)
        if callable(source) and getattr(source, "__wrapped__", None) is factory:
            return name
    register(factory)
    return factory.__name__


def take_data(
    data: FederatedDataset | str | None, settings: dict[str, Any]
) -> FederatedDataset | str | None:
    """Returns the data set, which may also be given as the setting `data`, and is then removed."""
    given = settings.get("data")
    if given is None or isinstance(given, Mapping):
        return data
    if data is not None:
        raise UserError("The data set is given twice: pass it once.")
    return settings.pop("data")


def config_of(
    methods: list[str], base: ml_collections.ConfigDict | None, settings: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """Returns a config with the settings of a user.

    Args:
      methods: The names of the methods; `learning_rate` and hyper-parameters without the name of a
        method belong to the only one.
      base: The config to start from, which is not changed; None for the defaults.
      settings: Keys of the config: a value for a key, such as `rounds=10`; a dict for a group of
        keys, such as `cohort={'size': 5}`; the name for a group that has one, such as
        `model='cnn'`, where a factory of a network is registered first; `learning_rate`; and
        hyper-parameters, such as `lam=0.5`.

    Raises:
      UserError: A key does not exist, or a value is of another type.
    """
    config = config_lib.default_config() if base is None else copy.deepcopy(base)
    own = config.hparams[methods[0]] if len(methods) == 1 else {}
    config.algorithm = methods[0]
    config.algorithms = tuple(methods)
    for key, value in settings.items():
        if key == "learning_rate":
            _set(config, "client_optimizer", {"learning_rate": value})
            # A config file may have given the methods rates of their own.
            for name in methods:
                config.learning_rates[name] = None
        elif key in own:
            _set(config, "hparams", {methods[0]: {key: value}})
        elif key in config:
            _set(config, key, value)
        else:
            raise UserError(f"Unknown setting {key!r}.{_hint(key, config, methods)}")
    return config


def _hint(key: str, config: ml_collections.ConfigDict, methods: list[str]) -> str:
    """Returns where a key is to be found, or the nearest one."""
    for method in ALGORITHMS:
        if key in config.hparams[method] and method in methods:
            return f" Pass hparams={{{method!r}: {{{key!r}: ...}}}}, as there are several methods."
    for flat in config_values.flat(config):
        group, _, name = flat.rpartition(".")
        if name == key and group and not group.startswith(("hparams", "aggregation")):
            outer, _, inner = group.partition(".")
            shown = f"{{{inner!r}: {{{key!r}: ...}}}}" if inner else f"{{{key!r}: ...}}"
            return f" Pass {outer}={shown}."
    known = [*config, *config.hparams[methods[0]], "learning_rate"]
    return config_values.suggest(key, known) or f" The settings are {', '.join(known)}."


def _set(node: ml_collections.ConfigDict, key: str, value: Any, path: str = "") -> None:
    """Sets a key of a config; keys of a group that are not given stay as they are."""
    path = f"{path}{key}"
    group = isinstance(node.get(key), ml_collections.ConfigDict)
    if group and isinstance(value, Mapping):
        is_open = path in config_checks.open_keys()
        for name, inner in value.items():
            if name not in node[key] and not is_open:
                raise UserError(
                    f"Unknown setting {path}[{name!r}].{config_values.suggest(name, node[key])}"
                )
            _set(node[key], name, inner, f"{path}.")
        return
    if group:
        if "name" not in node[key]:
            raise UserError(f"{path} is {value!r}; it must be a dict of {', '.join(node[key])}.")
        if callable(value) and path == "model":
            value = _registered(value, models.MODELS, register_model)
        if not isinstance(value, str):
            raise UserError(f"{path} is {value!r}; it must be a name, or a dict of settings.")
        node, key = node[key], "name"
    try:
        with node.unlocked():
            node[key] = tuple(value) if isinstance(value, list) else value
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path} is {value!r}; it must be of type {type(node[key]).__name__}."
        ) from error


@contextlib.contextmanager
def with_data(
    config: ml_collections.ConfigDict, dataset: FederatedDataset | str | None
) -> Iterator[ml_collections.ConfigDict]:
    """Yields a config that has a data set, which can be loaded within this context.

    Args:
      config: The config; changed in place.
      dataset: The data set; or the name of one, to be loaded by the config; None for that of the
        config.
    """
    if dataset is None:
        yield config
    elif isinstance(dataset, str):
        config.data.name = dataset
        yield config
    elif isinstance(dataset, FederatedDataset):
        with in_memory.available(dataset) as key:
            config.data.name, config.data.checksum = in_memory.NAME, key
            yield config
    else:
        raise UserError(
            f"The data set is a {type(dataset).__name__}: pass the name of one, or the result of "
            "pfljax.from_arrays, from_frame, from_csv, from_parquet, from_hugging_face or "
            "load_dataset."
        )
