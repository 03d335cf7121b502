"""The config's aggregation: what a method's messages pass through, and which metrics are public."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import ml_collections

from pfljax import aggregation
from pfljax.core import Algorithm, check_hyperparameters
from pfljax.data import FederatedDataset
from pfljax.errors import UserError
from pfljax.training.study import placement
from pfljax.training.study.config_values import require_known

METRICS = ("public", "none")


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a `UserError` for the first value of `config.aggregation` that cannot be used."""
    settings = config.aggregation
    if isinstance(settings.stages, str):
        raise UserError(
            f"config.aggregation.stages is {settings.stages!r}; it must be a tuple of names, such "
            "as ('clip',)."
        )
    for name in settings.stages:
        require_known("aggregation.stages", name, aggregation.AGGREGATORS)
    require_known("aggregation.metrics", settings.metrics, METRICS)
    for name, factory in aggregation.AGGREGATORS.items():
        check_hyperparameters(factory, settings[name], f"config.aggregation.{name}.")
    aggregation.require_order(aggregators(config))


def aggregators(config: ml_collections.ConfigDict) -> Sequence[aggregation.Aggregator]:
    """Returns the config's aggregators, in the order in which clients apply them."""
    settings = config.aggregation
    return [aggregation.AGGREGATORS[name](**settings[name]) for name in settings.stages]


def hyperparameters(config: ml_collections.ConfigDict) -> dict[str, dict[str, float]]:
    """Returns the hyper-parameters of the config's aggregators by their names."""
    return {name: dict(config.aggregation[name]) for name in config.aggregation.stages}


def aggregated(
    config: ml_collections.ConfigDict, algorithm: Algorithm, dataset: FederatedDataset
) -> Algorithm:
    """Returns the config's method with the config's aggregation; nothing is compiled.

    Args:
      config: The config of the run, whose hyper-parameters may be traced.
      algorithm: The config's method.
      dataset: The data set of the run, of which only shapes are read.

    Raises:
      UserError: The method's messages cannot pass through one of the aggregators.
    """
    if config.aggregation.stages:
        shapes = placement.shapes(dataset, max(1, int(dataset.train.sizes.max())))
        message, each = aggregation.shapes_of_upload(algorithm, *shapes)
        if not jax.tree.leaves(message):
            raise UserError(
                f"{config.algorithm} uploads nothing that is added up, so that "
                "config.aggregation.stages would change nothing; leave it empty, or leave the "
                "method out."
            )
        own, added = algorithm.aggregators, aggregators(config)
        aggregation.require_order((*own, *added), of_method=len(own))
        for aggregator in added:
            if aggregator.kind is aggregation.Kind.BOUNDED and jax.tree.leaves(each):
                raise UserError(
                    f"{config.algorithm} shows the server each client's upload, which "
                    f"{aggregator.name!r} neither clips nor covers with noise; name another "
                    "method, or leave it out of config.aggregation.stages."
                )
            algorithm = aggregation.apply(algorithm, aggregator, message)
        aggregation.shapes_of_upload(algorithm, *shapes)  # An aggregator may refuse a message.
    if config.aggregation.metrics == "none":
        algorithm = aggregation.without_metrics(algorithm)
    return algorithm
