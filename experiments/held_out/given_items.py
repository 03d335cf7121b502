"""Examples of held-out users, of which each has a few given items, for a linear model."""

from __future__ import annotations

import copy
import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from pfljax.api.training import fit
from pfljax.data import FederatedDataset, precompute
from pfljax.errors import UserError
from pfljax.training.study.task import build_task


class Users(NamedTuple):
    """Examples of held-out users, whose rows have padding.

    Attributes:
      inputs: `[U, n, ...]`, as stored.
      targets: `[U, n]` int32.
      mask: `[U, n]` bool, False for padding.
    """

    inputs: np.ndarray
    targets: np.ndarray
    mask: np.ndarray

    def fraction(self, right: jax.Array) -> jax.Array:
        """Returns `[U]`, the fraction of each user's examples where `right` `[U, n]` is True."""
        return (right & self.mask).sum(axis=1) / self.mask.sum(axis=1)


def rows_of(dataset: FederatedDataset, split: str, client: int) -> np.ndarray:
    """Returns the rows of a client's examples of a split in the flat arrays."""
    of_split = getattr(dataset, split)
    return of_split.offsets[client] + np.arange(of_split.sizes[client])


def users_of(dataset: FederatedDataset, split: str, clients: Sequence[int]) -> Users:
    """Returns the examples of some clients, padded to the largest number."""
    found = [rows_of(dataset, split, client) for client in clients]
    longest = max(len(rows) for rows in found)
    mask = np.array([np.arange(longest) < len(rows) for rows in found])
    rows = np.array([np.resize(rows, longest) for rows in found])
    inputs = dataset.inputs[rows]
    inputs = inputs if dataset.items is None else dataset.items[inputs]
    return Users(inputs, dataset.targets[rows], mask)


def with_given_items(dataset: FederatedDataset, items: int, seed: int) -> FederatedDataset:
    """Returns the data set in which held-out users have only a few training examples.

    Args:
      dataset: All training examples of held-out users.
      items: Number of training examples that each of them keeps, in random order; validation
        examples none.
      seed: The seed of the order.

    Raises:
      UserError: A held-out user has fewer training examples, or no test examples.
    """
    rng = np.random.default_rng((seed, items))
    order = np.arange(len(dataset.targets))
    for client in range(dataset.num_participants, dataset.num_clients):
        rows, tests = rows_of(dataset, "train", client), dataset.test.sizes[client]
        if len(rows) < items or not tests:
            raise UserError(
                f"A held-out client has {len(rows)} training examples and {tests} test examples; "
                f"--items={items} needs as many, and one to test: raise config.data.min_size."
            )
        order[rows] = rng.permutation(rows)
    held_out = np.arange(dataset.num_clients) >= dataset.num_participants
    sizes = np.where(held_out, items, dataset.train.sizes).astype(np.int32)
    validation = np.where(held_out, 0, dataset.validation.sizes).astype(np.int32)
    return dataset._replace(
        inputs=dataset.inputs[order],
        targets=dataset.targets[order],
        train=dataset.train._replace(sizes=sizes),
        validation=dataset.validation._replace(sizes=validation),
    )


def linear_features(
    config: ml_collections.ConfigDict, dataset: FederatedDataset, directory: pathlib.Path
) -> tuple[ml_collections.ConfigDict, FederatedDataset]:
    """Returns the config and the data set of a linear model.

    For a network other than 'logistic', the inputs are replaced by the features of a base, which
    FedAvg trains on the training users with the config's learning rate and rounds, in `directory`.
    """
    own = copy.deepcopy(config)
    own.model = ml_collections.ConfigDict({"name": "logistic"})
    if config.model.name == "logistic":
        return own, dataset
    base = fit("fedavg", dataset, config=config, workdir=directory).global_model().params
    make, frozen = build_task(config, dataset)
    features = jax.jit(functools.partial(make(frozen).features, base))
    return own, precompute(dataset, features)
