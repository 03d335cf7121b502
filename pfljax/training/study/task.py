"""From a config and a data set to a task: the model with its arguments, and the loss."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from pfljax import models, tasks
from pfljax.core import Task
from pfljax.data import FederatedDataset, validate
from pfljax.errors import UserError
from pfljax.training.study import config as config_lib

_OTHER_MODEL = "raise config.model.vocabulary, or name a model that reads measurements"


def build_task(config: ml_collections.ConfigDict, dataset: FederatedDataset) -> Task:
    """Makes the config's model for a data set, and the task that its targets set.

    Raises:
      UserError: model and data set do not go together.
    """
    config_lib.require_known("model", config.model.name, models.MODELS)
    kind = getattr(dataset, "task", "classification")
    config_lib.require_known("task", kind, tasks.TASKS)
    shape, columns = _example_shape(dataset.inputs, 1), dataset.targets.shape[1:]
    if kind == "ranking":  # whose examples are several items
        columns = jax.tree.leaves(dataset.inputs)[0].shape[1:2]
        shape = _example_shape(dataset.inputs, 2)
    if kind == "next_token" and not columns:
        kind = "classification"  # of each whole text by the one token that follows
    outputs = {"regression": 1, "rating": 1, "ranking": 1, "multi_label": sum(columns)}.get(
        kind, dataset.num_classes
    )
    model = models.MODELS[config.model.name](shape, outputs, **_arguments(config, dataset))
    _require_ids(config, dataset, model)
    if config.compute_dtype != "float32":
        model = models.compute_in(model, config.compute_dtype)
    make = tasks.TASKS[kind]
    of_dataset = {
        "num_classes": outputs,
        "mean": dataset.mean,
        "std": dataset.std,
        "target_mean": getattr(dataset, "target_mean", 0.0),
        "target_std": getattr(dataset, "target_std", 1.0),
    }
    accepted = of_dataset.keys() & inspect.signature(make).parameters.keys()
    task = make(model, **{name: of_dataset[name] for name in accepted})
    shapes = {"next_token": (*columns, outputs), "ranking": columns}
    _require_outputs(config, dataset, task, shapes.get(kind, (outputs,)))
    return task


def _example_shape(inputs: Any, axes: int) -> Any:
    """Returns shapes without their first axes: one, or a dict by the names of the inputs."""
    if isinstance(inputs, Mapping):
        return {name: array.shape[axes:] for name, array in inputs.items()}
    return inputs.shape[axes:]


def _require_ids(
    config: ml_collections.ConfigDict, dataset: FederatedDataset, model: models.Model
) -> None:
    """Raises a `UserError` where a model reads ids as measurements, by the names of the inputs."""
    if not isinstance(dataset.inputs, Mapping):
        return  # Which models read ids stands in their arguments.
    for name in dataset.inputs:
        reads_ids = model.reads_ids
        if isinstance(reads_ids, Mapping):
            reads_ids = reads_ids[name]
        if reads_ids != (name in dataset.vocabulary):
            kinds = "measurements", "ids"
            raise UserError(
                f"The inputs {name!r} of {dataset.name} are {kinds[name in dataset.vocabulary]}, "
                f"and the model {config.model.name} reads them as {kinds[bool(reads_ids)]}; name "
                "another model in config.model.name."
            )


def _arguments(config: ml_collections.ConfigDict, dataset: FederatedDataset) -> dict[str, Any]:
    """The config's arguments of the model, and the vocabulary where inputs are ids."""
    name = config.model.name
    known = _parameters(name)
    arguments = {key: value for key, value in config.model.items() if key != "name"}
    for key in arguments:
        config_lib.require_known(f"argument of the model {name}", key, known)
    vocabulary = getattr(dataset, "vocabulary", ())
    if isinstance(vocabulary, Mapping):
        vocabulary = {name: _one_or_all(sizes) for name, sizes in vocabulary.items()}
    else:
        vocabulary = tuple(vocabulary)
    readers = [other for other in models.MODELS if "vocabulary" in _parameters(other)]
    if name not in readers:
        if vocabulary:
            raise UserError(
                f"{dataset.name} holds ids and the model {name} reads measurements; name one of "
                f"{', '.join(readers)} in config.model.name."
            )
    elif vocabulary:
        arguments.setdefault("vocabulary", _one_or_all(vocabulary))
    elif "vocabulary" not in arguments:
        raise UserError(
            f"The model {name} reads ids and {dataset.name} does not say that it holds any; name "
            "another model, or how many ids there are in config.model.vocabulary."
        )
    sizes = arguments.get("vocabulary", ())
    if isinstance(dataset.inputs, Mapping):
        if name in readers and sizes != vocabulary:
            raise UserError(
                f"config.model.vocabulary is {sizes}, and {dataset.name}, whose inputs are "
                f"{', '.join(dataset.inputs)}, has the vocabulary {vocabulary}; leave the key out."
            )
        return arguments
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if name in readers and sizes != vocabulary:  # the data set's own were checked with it
        validate.ids(f"The data set {dataset.name}", dataset.inputs, sizes, remedy=_OTHER_MODEL)
    return arguments


def _one_or_all(sizes: Any) -> Any:
    """Returns the size of a single id space as a number, and several as they are."""
    return sizes[0] if not isinstance(sizes, Mapping) and len(sizes) == 1 else sizes


def _parameters(name: str) -> list[str]:
    """What a model takes beside the shape of an example and the number of outputs."""
    return list(inspect.signature(models.MODELS[name]).parameters)[2:]


def _require_outputs(
    config: ml_collections.ConfigDict, dataset: FederatedDataset, task: Task, wanted: tuple
) -> None:
    def outputs():
        example = jax.tree.map(
            lambda array: jnp.zeros(
                (1, *array.shape[1:]),
                jax.dtypes.canonicalize_dtype(array.dtype),  # of 8 bytes on disk
            ),
            dataset.inputs,
        )
        return task.predict(task.init(jax.random.key(0)), example)

    given = jax.eval_shape(outputs).shape[1:]
    if given != wanted:
        raise UserError(
            f"The model {config.model.name} answers an example by numbers of the shape {given}, "
            f"and {dataset.name} asks for {wanted}; name another model."
        )
