"""Clients with models of different architectures: `config.architectures`, and its checks."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections

from pfljax import core, models
from pfljax.algorithms import ALGORITHMS
from pfljax.core import ClientData, Params, Population, PyTree, Task
from pfljax.data import FederatedDataset
from pfljax.engine import groups, programs
from pfljax.errors import UserError
from pfljax.training.study import config_values, model_arguments
from pfljax.training.study import task as task_lib

_EXAMPLE = "'mlp(widths=(64, 32))'"
# Exceptions of Python's parser for a text that is no call, and of a value that is no text.
_UNREADABLE = (
    *(SyntaxError, ValueError, TypeError, AttributeError),
    *(MemoryError, RecursionError),
)


def parse(text: str) -> dict[str, Any]:
    """Returns the name and the arguments of a model, as `config.model` contains them.

    Args:
      text: The name of a network, with arguments as in a call in Python or without any.

    Raises:
      UserError: It is none, or an argument does not exist or has another type.

    Example:
      >>> parse("mlp(widths=(64, 32))"), parse("lenet")
      ({'name': 'mlp', 'widths': (64, 32)}, {'name': 'lenet'})
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        called, keywords, others = node, [], []
        if isinstance(node, ast.Call):
            called, keywords, others = node.func, node.keywords, node.args
        arguments = {each.arg: ast.literal_eval(each.value) for each in keywords}
    except _UNREADABLE as error:
        raise _not_a_model(text) from error
    if not isinstance(called, ast.Name) or others or {None, "name"} & set(arguments):
        raise _not_a_model(text)
    config_values.require_known("model in config.architectures,", called.id, models.MODELS)
    kinds = model_arguments.types_of(called.id)
    for name in arguments:
        what = f"argument in config.architectures of the model {called.id},"
        config_values.require_known(what, name, kinds)
    return {"name": called.id} | {
        name: model_arguments.converted(f"{name} of {text!r}", value, kinds[name])
        for name, value in arguments.items()
    }


def _not_a_model(text: Any) -> UserError:
    return UserError(
        f"config.architectures contains {text!r}; write the name of a model, with its arguments as "
        f"in {_EXAMPLE}."
    )


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a `UserError` where a config's architectures cannot be used, before data are read."""
    if not config.architectures:
        return
    for text in config.architectures:
        parse(text)
    if len(config.architectures) == 1:
        raise UserError(
            f"config.architectures has only {config.architectures[0]!r}; name further models, or "
            "set config.model, which all clients have."
        )
    for key, value in {"engine.residence": "host", "engine.clients_per_chunk": "auto"}.items():
        if config_values.at(config, key) == value:
            raise UserError(
                f"config.{key}={value!r} is for models of one architecture; choose another value, "
                "or remove config.architectures."
            )
    for key in ("init_from", "adapter.base", "adapter.start"):
        if config_values.at(config, key):
            raise UserError(
                f"config.{key} is a file with the params of one model; remove it, or remove "
                "config.architectures."
            )


def require_clients(config: ml_collections.ConfigDict, dataset: FederatedDataset) -> None:
    """Raises a `UserError` if an architecture has no client that takes part in training."""
    wanted, participants = len(config.architectures), dataset.num_participants
    if participants < wanted:
        raise UserError(
            f"config.architectures has {wanted} models, but {participants} clients take part; name "
            "fewer models, or raise config.data.num_clients."
        )


def each(config: ml_collections.ConfigDict) -> list[ml_collections.ConfigDict]:
    """Returns a config for each architecture, with its model as `config.model`."""
    if not config.architectures:
        return [config]
    found = []
    for text in config.architectures:
        own = copy.deepcopy(config)
        with own.unlocked():
            own.model, own.architectures = ml_collections.ConfigDict(parse(text)), ()
        found.append(own)
    return found


def of_client(config: ml_collections.ConfigDict, client: int) -> int:
    """Returns the number of the architecture of a client; 0 for models of one architecture."""
    return client % max(1, len(config.architectures))


def build_tasks(
    config: ml_collections.ConfigDict, dataset: FederatedDataset
) -> list[tuple[Callable[[Params], Task], Params]]:
    """Returns the result of `task.build_task` for each architecture.

    Raises:
      UserError: A model does not fit the data set.
    """
    found = []
    for own, text in zip(each(config), config.architectures or ("",), strict=True):
        try:
            found.append(task_lib.build_task(own, dataset))
        except UserError as error:
            raise UserError(
                f"config.architectures, {text!r}: {error}" if text else str(error)
            ) from error
    return found


def require_common(
    config: ml_collections.ConfigDict,
    methods: Sequence[programs.Method],
    population: Population,
    data: ClientData,
) -> None:
    """Raises a `UserError` if clients of different architectures have nothing to exchange.

    Args:
      config: The config of the run.
      methods: The method for each architecture.
      population: Shapes and dtypes of the profiles of all clients.
      data: Shapes and dtypes of a client's examples.
    """
    first, *others = (groups.exchanged(method.algorithm, population, data) for method in methods)
    for number, other in enumerate(others, 1):
        if _forms(other) != _forms(first):
            texts = config.architectures[0], config.architectures[number]
            raise UserError(_refusal(config, texts, (methods[0].task, methods[number].task), first))


def _forms(exchanged: groups.Exchanged) -> PyTree:
    leaves, structure = jax.tree.flatten(exchanged)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _refusal(
    config: ml_collections.ConfigDict,
    texts: tuple[str, str],
    tasks: tuple[Task, Task],
    exchanged: groups.Exchanged,
) -> str:
    """Returns what a method exchanges, why two architectures cannot, and what to do."""
    row = ALGORITHMS[config.algorithm]
    title, (one, other) = row.title or config.algorithm, texts
    part = _part_of_model(tasks[0], exchanged)
    widths = tuple(task.num_features for task in tasks)
    unset = [
        name
        for name in core.networks(row.factory)
        if not config.hparams[config.algorithm][name].name
    ]
    if part in ("head", "") and widths[0] != widths[1]:
        what = f"the {part} of the model" if part else "arrays of the width of the features"
        return (
            f"{title} exchanges {what}, so that the features of all models must have one width, "
            f"and those of {one!r} have {widths[0]} entries and those of {other!r} {widths[1]}; "
            f"set their arguments in config.architectures, such as the last of the widths in "
            f"{_EXAMPLE}."
        )
    what = {"": "parts of the model", "model": "the whole model"}.get(
        part, f"the {part} of the model"
    )
    remedy = (
        "choose a method that exchanges no such part, such as fedproto, fd or fedgh, or one model "
        "in config.model"
    )
    if unset:
        key = f"config.hparams.{config.algorithm}.{unset[0]}.name"
        remedy = f"set {key} to the model that all clients exchange"
    return (
        f"{title} exchanges {what}, which has other arrays in {one!r} than in {other!r} of "
        f"config.architectures; {remedy}."
    )


def _part_of_model(task: Task, exchanged: groups.Exchanged) -> str:
    """Returns 'model', 'body' or 'head' where messages have all arrays of it, else ''."""
    sent = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(exchanged)
    ]
    paths = jax.tree_util.tree_leaves_with_path(jax.eval_shape(task.init, jax.random.key(0)))
    is_sent = {
        tuple(part.key for part in path): any(
            name.endswith(jax.tree_util.keystr(path)) for name in sent
        )
        for path, _ in paths
    }
    parts = {"model": lambda path: True, "body": task.is_body, "head": task.is_head}
    for part, selected in parts.items():
        chosen = [found for path, found in is_sent.items() if selected(path)]
        if chosen and all(chosen):
            return part
    return ""
