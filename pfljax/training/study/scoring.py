"""From a config to the metrics of a task, and to the score by which its models are compared."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from pfljax.core import Batch, Task
from pfljax.errors import UserError
from pfljax.metrics import METRICS
from pfljax.training.study import config_values


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a `UserError` if `config.metrics` or `config.score` are no names."""
    for key, names in (("metrics", config.metrics), ("score", (config.score,))):
        for name in names:
            if not isinstance(name, str):
                raise UserError(
                    f"config.{key} has {name!r}; it takes names of metrics, such as 'auc'."
                )
    twice = [name for name in config.metrics if list(config.metrics).count(name) > 1]
    if twice:
        raise UserError(f"config.metrics contains {twice[0]!r} twice; list each metric once.")


def own_metrics(task: Task, example: Batch) -> list[str]:
    """Returns the names of the metrics that a task computes itself, as means over examples.

    Args:
      task: The task.
      example: Shapes of a batch.
    """

    def sums(example):
        return task.evaluate(task.init(jax.random.key(0)), example, jax.random.key(0))

    return [name for name in jax.eval_shape(sums, example) if name != "count"]


def require_known(
    config: ml_collections.ConfigDict, kind: str, own: Collection[str], source: str
) -> None:
    """Raises a `UserError` if a metric or the score of a config is not for its task.

    Args:
      config: The config of the run.
      kind: The name of the task.
      own: The names of the metrics that the task computes itself.
      source: The name of the data set.
    """
    further = [name for name, metric in METRICS.items() if kind in metric.tasks]
    for name in further:
        if name in own and name in config.metrics:
            raise UserError(
                f"The task {kind} has a metric {name!r} itself, and another one is in METRICS; "
                "give that one another name."
            )
    known = [*further, *own]
    for name in config.metrics:
        if name in METRICS and name not in known:
            raise UserError(
                f"config.metrics has {name!r}, which is for {' and '.join(METRICS[name].tasks)}, "
                f"but the task of {source} is {kind}; its metrics are {', '.join(known)}."
            )
        config_values.require_known("name in config.metrics", name, known)
    if config.score in further and config.score not in config.metrics:
        raise UserError(
            f"config.score is {config.score!r}, which is not computed; add it to config.metrics."
        )
    if config.score:
        config_values.require_known("config.score", config.score, [*own, *config.metrics])


def with_metrics(config: ml_collections.ConfigDict, own: Collection[str], task: Task) -> Task:
    """Returns a task with the metrics of whole outputs and the score of a config.

    Args:
      config: The config of the run; see `require_known`.
      own: The names of the metrics that the task computes itself.
      task: The task.
    """
    added = {name: METRICS[name] for name in config.metrics if name not in own}
    lower = [name for name, metric in added.items() if not metric.more_is_better]
    return task._replace(
        score=config.score or task.score,
        lower_is_better=(*task.lower_is_better, *lower),
        client_metrics={name: metric.compute for name, metric in added.items()},
    )


def require_numbers(task: Task, example: Batch) -> None:
    """Raises a `UserError` if a metric of whole outputs is not one number for a client.

    Args:
      task: The result of `with_metrics`.
      example: Shapes of a batch.
    """
    for name, compute in task.client_metrics.items():

        def of_client(example, compute=compute):
            outputs = task.predict(task.init(jax.random.key(0)), example.inputs)
            return compute(task.decode(outputs), example.targets, example.mask)

        found: Any = jax.eval_shape(of_client, example)
        if getattr(found, "shape", None) != () or not jnp.issubdtype(found.dtype, jnp.floating):
            raise UserError(
                f"The metric {name!r} returns {found} for a client; it must return one "
                "floating-point number, of shape []."
            )
