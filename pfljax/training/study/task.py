"""From a config and a data set to a task: the model with its arguments, and the loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections

from pfljax import core, models, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.core import Batch, Params, Task, tree
from pfljax.data import FederatedDataset, validate_arrays
from pfljax.errors import UserError
from pfljax.ops import preference
from pfljax.training.study import adapters, config_values, pretrained, scoring


def build_task(
    config: ml_collections.ConfigDict, dataset: FederatedDataset, key: str = "model"
) -> tuple[Callable[[Params], Task], Params]:
    """Returns the task of a data set, with one of the config's models.

    Args:
      config: The config of the run.
      dataset: The data set.
      key: One of `config.model_keys`, which contains the model and its arguments; the adapter and
        the initial parameters are for the clients' model, 'model'.

    Returns:
      `frozen -> task`, and the frozen parameters of the model, or those with which its training
      starts; `()` for a model without either.

    Raises:
      UserError: The model does not fit the data set.
    """
    name = config_values.at(config, key).name
    config_values.require_known("model", name, models.MODELS)
    kind = getattr(dataset, "task", "classification")
    config_values.require_known("task", kind, tasks.TASKS)
    forms = dataset.input_forms
    shape, columns = _shapes(forms, 0), dataset.targets.shape[1:]
    if kind in ("ranking", "preference", "recommendation"):  # whose examples are several items
        columns, shape = jax.tree.leaves(forms)[0].shape[:1], _shapes(forms, 1)
    if kind == "next_token" and not columns:
        kind = "classification"  # of each whole text by the one token that follows
    one = dict.fromkeys(("regression", "rating", "ranking", "preference"), 1)
    outputs = {**one, "multi_label": sum(columns)}.get(kind, dataset.num_classes)
    model = models.MODELS[name](shape, outputs, **_arguments(config, dataset, key))
    _require_ids(config, dataset, model, key)
    if config.zero_init:
        model = model._replace(init=_zeros_of(model.init))
    if config.compute_dtype != "float32":
        model = models.compute_in(model, config.compute_dtype)
    given, frozen = (lambda task, frozen: task), ()
    if key == "model":
        model, given, frozen = adapters.build(config.adapter, model)
        if config.init_from:
            given, frozen = pretrained.build(config.init_from, model)
    task_of = tasks.TASKS[kind]
    of_dataset = {
        "num_classes": outputs,
        "mean": dataset.mean,
        "std": dataset.std,
        "target_mean": getattr(dataset, "target_mean", 0.0),
        "target_std": getattr(dataset, "target_std", 1.0),
    }
    accepted = of_dataset.keys() & inspect.signature(task_of).parameters.keys()
    settings = {name: of_dataset[name] for name in accepted}
    if kind == "preference":
        settings |= _losses_of_pairs(config, frozen)
    if kind == "recommendation":
        settings |= _weights_of_losses(config)

    def make(frozen):
        # The base of an adapter, or the model with which training starts.
        reference = {"reference": frozen} if settings.get("reference") else {}
        return given(task_of(model, **{**settings, **reference}), frozen)

    shapes = {"next_token": (*columns, outputs), "ranking": columns, "preference": ()}
    shapes["recommendation"] = (sum(columns) + 1 + outputs,)
    _require_outputs(name, dataset, make(frozen), shapes.get(kind, (outputs,)))
    if key != "model":
        return make, frozen
    example = _example(dataset)
    own = scoring.own_metrics(make(frozen), example)
    scoring.require_known(config, kind, own, dataset.name)

    def make_scored(frozen):
        return scoring.with_metrics(config, own, make(frozen))

    scoring.require_numbers(make_scored(frozen), example)
    return make_scored, frozen


def _losses_of_pairs(config: ml_collections.ConfigDict, frozen: Params) -> dict[str, Any]:
    """Returns the arguments of `tasks.preference` in `config.preference`, after checks."""
    settings = config.preference
    config_values.require_known("loss (config.preference.loss)", settings.loss, preference.LOSSES)
    if not settings.beta > 0:
        raise UserError(f"config.preference.beta is {settings.beta}; it must be above 0.")
    if not 0 <= settings.smoothing <= 0.5:
        raise UserError(
            f"config.preference.smoothing is {settings.smoothing}; it must be from 0 to 0.5."
        )
    if settings.reference and not (jax.tree.leaves(frozen) and config.adapter.head != "new"):
        raise UserError(
            "config.preference.reference needs a given model: name a file in config.init_from, or "
            "set config.adapter.name and, for the head, config.adapter.head to base or frozen."
        )
    given = {"beta": float(settings.beta), "smoothing": float(settings.smoothing)}
    return {"loss": settings.loss, "reference": settings.reference or None, **given}


def _weights_of_losses(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Returns the arguments of `tasks.recommendation` in `config.recommendation`, after checks."""
    settings = {name: float(value) for name, value in config.recommendation.items()}
    for name, value in settings.items():
        if not 0 <= value < math.inf:
            raise UserError(f"config.recommendation.{name} is {value}; it must be 0 or more.")
    if not any(settings[name] for name in settings if name != "gamma"):
        raise UserError(
            "config.recommendation has no loss, as all its weights are 0; set next_item=1.0."
        )
    return settings


def _zeros_of(init: Callable[[jax.Array], Params]) -> Callable[[jax.Array], Params]:
    """Returns an `init` whose params are zero, with the shapes and dtypes of another one."""
    return lambda key: tree.zeros_like(jax.eval_shape(init, key))


def _shapes(forms: Any, axes: int) -> Any:
    """Returns shapes without their first axes: one, or a dict by the names of the inputs."""
    if isinstance(forms, Mapping):
        return {name: form.shape[axes:] for name, form in forms.items()}
    return forms.shape[axes:]


def _require_ids(
    config: ml_collections.ConfigDict, dataset: FederatedDataset, model: models.Model, key: str
) -> None:
    """Raises a `UserError` if a model confuses ids and numeric inputs."""
    if not isinstance(dataset.inputs, Mapping):
        return  # the models' arguments say whether they read ids
    for name in dataset.inputs:
        reads_ids = model.reads_ids
        if isinstance(reads_ids, Mapping):
            reads_ids = reads_ids[name]
        if reads_ids != (name in dataset.vocabulary):
            kinds = "measurements", "ids"
            raise UserError(
                f"The inputs {name!r} of {dataset.name} are {kinds[name in dataset.vocabulary]}, "
                f"and the model {config_values.at(config, key).name} reads them as "
                f"{kinds[bool(reads_ids)]}; choose another model in config.{key}.name."
            )


def build_networks(config: ml_collections.ConfigDict, dataset: FederatedDataset) -> dict[str, Task]:
    """Returns the networks that are hyper-parameters of the config's method, if models are set.

    Raises:
      UserError: A model does not fit the data set, or arguments have no model.
    """
    found = {}
    for name in core.networks(ALGORITHMS[config.algorithm].factory):
        key = f"hparams.{config.algorithm}.{name}"
        settings = config_values.at(config, key)
        if settings.name:
            make, frozen = build_task(config, dataset, key)
            found[name] = make(frozen)
        elif unused := sorted(set(settings) - {"name"}):
            raise UserError(
                f"config.{key}.{unused[0]} is an argument of a model that is not set; set "
                f"config.{key}.name."
            )
    return found


def _arguments(
    config: ml_collections.ConfigDict, dataset: FederatedDataset, key: str
) -> dict[str, Any]:
    """Returns the config's arguments of a model, and the vocabulary if inputs are ids."""
    arguments = dict(config_values.at(config, key))
    name = arguments.pop("name")
    known = _parameters(name)
    for argument in arguments:
        config_values.require_known(f"argument of the model {name}", argument, known)
    vocabulary = getattr(dataset, "vocabulary", ())
    if isinstance(vocabulary, Mapping):
        vocabulary = {name: _one_or_all(sizes) for name, sizes in vocabulary.items()}
    else:
        vocabulary = tuple(vocabulary)
    readers = [other for other in models.MODELS if "vocabulary" in _parameters(other)]
    if name not in readers:
        if vocabulary:
            raise UserError(
                f"{dataset.name} has ids as inputs, but the model {name} needs numeric inputs; set "
                f"config.{key}.name to one of {', '.join(readers)}."
            )
    elif vocabulary:
        arguments.setdefault("vocabulary", _one_or_all(vocabulary))
    elif "vocabulary" not in arguments:
        raise UserError(
            f"The model {name} reads ids, but {dataset.name} does not declare its inputs as ids; "
            f"choose another model, or set config.{key}.vocabulary to the number of ids."
        )
    sizes = arguments.get("vocabulary", ())
    if isinstance(dataset.inputs, Mapping):
        if name in readers and sizes != vocabulary:
            raise UserError(
                f"config.{key}.vocabulary is {sizes}, and {dataset.name}, whose inputs are "
                f"{', '.join(dataset.inputs)}, has the vocabulary {vocabulary}; remove the key."
            )
        return arguments
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if name in readers and sizes != vocabulary:  # the data set's own were checked with it
        remedy = f"raise config.{key}.vocabulary, or choose a model for numeric inputs"
        validate_arrays.ids(f"The data set {dataset.name}", dataset.contents, sizes, remedy=remedy)
    return arguments


def _one_or_all(sizes: Any) -> Any:
    """Returns the size of a single id space as a number, and several unchanged."""
    return sizes[0] if not isinstance(sizes, Mapping) and len(sizes) == 1 else sizes


def _parameters(name: str) -> list[str]:
    """Returns a model's arguments other than example shape and number of outputs."""
    return list(inspect.signature(models.MODELS[name]).parameters)[2:]


def _example(dataset: FederatedDataset) -> Batch:
    """Returns the shapes and dtypes of a batch of one example."""

    def one(form):
        dtype = jax.dtypes.canonicalize_dtype(form.dtype)  # of 8 bytes on disk
        return jax.ShapeDtypeStruct((1, *form.shape), dtype)

    target = jax.ShapeDtypeStruct(dataset.targets.shape[1:], dataset.targets.dtype)
    inputs, targets = jax.tree.map(one, (dataset.input_forms, target))
    return Batch(inputs, targets, jax.ShapeDtypeStruct((1,), bool))


def _require_outputs(name: str, dataset: FederatedDataset, task: Task, wanted: tuple) -> None:
    def outputs(inputs):
        return task.predict(task.init(jax.random.key(0)), inputs)

    given = jax.eval_shape(outputs, _example(dataset).inputs).shape[1:]
    if given != wanted:
        raise UserError(
            f"The model {name} has outputs of shape {given} per example, but {dataset.name} needs "
            f"{wanted}; choose another model."
        )
