"""Difference features: how a user's labels deviate from those of other users on the same items."""

from __future__ import annotations

import numpy as np

from pfljax.data import checks
from pfljax.data.dataset import FederatedDataset, Split
from pfljax.errors import UserError

USER_FEATURES = ("none", "difference")


def difference_features(dataset: FederatedDataset, shrinkage: float = 5.0) -> FederatedDataset:
    """Adds to the inputs of each example how its user's labels deviate from those of other users.

    For an example of the user u and the item i,

        d_uj = y_uj - mean of y_vj over other users v
        b_ui = sum_j d_uj / (n_ui + shrinkage)
        s_ui = sum_j d_uj <x_j, x_i> / (n_ui + shrinkage)

    where j ranges over the items of the user's own training examples except i, and n_ui is their
    number. Means are over the training examples of participating users; d_uj is 0 for an item that
    no other user rates. b is the user's mean deviation, and s the deviation as a linear function of
    the item, so that one linear model of all users can use both. y is the target of a regression,
    and 1 or 0 for each class but the first in a classification.

    The features of an example contain neither its own label nor any other label of its user for the
    same item, and no label of a validation or test example. With held-out users, the labels of all
    users are compared with those of participating users only. In training, the server sees the sum
    and the number of the labels of each item, and a user needs those of its own items.

    Args:
      dataset: A classification or regression whose examples are single items, `[num_items, d]`
        numeric features.
      shrinkage: Number of ratings without a deviation that are added to those of each user, at
        least 0.

    Returns:
      The data set without items: the inputs are `[num_examples, d + 2 K]` float32, the item's
      features as models read them, then b and s of each of the `K` targets of an example (1 for a
      regression, `C - 1` for a classification).

    Raises:
      UserError: The data set has no such items or targets, or examples of the server, which have
        no user; or `shrinkage` is invalid.

    Notes:
      This is the idea of Difference-aware Embedding-based Personalization (DEP) for cached
      features: the difference from the other users on an item is that of labels, not of the
      embeddings of written reviews, and without DEP's autoencoder and language model.

    References:
      Qiu, Shi, Zhao, Zhu, Zhang, Feng, "Latent Inter-User Difference Modeling for LLM
      Personalization", 2025, https://arxiv.org/abs/2507.20849.

    >>> from pfljax.data.arrays import from_arrays
    >>> from pfljax.data.precompute import precompute
    >>> ratings = from_arrays(np.array([[3.0], [4.0]] * 4), [0, 1] * 2 + [1] * 4, [0] * 4 + [1] * 4)
    >>> found = difference_features(precompute(ratings, np.square))
    >>> found.inputs.shape, found.items
    ((8, 3), None)
    """
    checks.number("shrinkage", shrinkage, 0, 1e9)
    features = _features(dataset)
    labels = _labels(dataset)
    items = dataset.inputs
    sums = np.zeros((len(features), labels.shape[1]))
    counts = np.zeros(len(features))
    for user in range(dataset.num_participants):
        _add(sums, counts, labels, items, _rows(dataset.train, user))
    added = np.zeros((len(items), 2 * labels.shape[1]), np.float32)
    for user in range(dataset.num_clients):
        train = _rows(dataset.train, user)
        own_sums, own_counts = np.zeros_like(sums), np.zeros_like(counts)
        if user < dataset.num_participants:
            _add(own_sums, own_counts, labels, items, train)
        rated = items[train]
        others = (counts - own_counts)[rated][:, np.newaxis]
        means = (sums - own_sums)[rated] / np.maximum(others, 1)
        deviations = np.where(others > 0, labels[train] - means, 0)
        for split in (dataset.train, dataset.validation, dataset.test):
            rows = _rows(split, user)
            # A factor of 0 leaves the example's own item out exactly, without rounding.
            used = (items[rows][:, np.newaxis] != rated).astype(float)
            # Without any other rating, the sums are 0 too.
            size = np.maximum(used.sum(axis=1, keepdims=True) + shrinkage, 1e-9)
            products = used * (features[items[rows]] @ features[rated].T)
            added[rows] = np.concatenate([used @ deviations, products @ deviations], axis=1) / size
    inputs = np.concatenate([features[items].astype(np.float32), added], axis=1)
    return dataset._replace(inputs=inputs, items=None, mean=0.0, std=1.0)


def _features(dataset: FederatedDataset) -> np.ndarray:
    """Returns `[num_items, d]` float64, the features of the items as models read them.

    Raises:
      UserError: The data set has no such items, or its server has examples.
    """
    if dataset.items is None or dataset.items.ndim != 2 or dataset.inputs.ndim != 1:
        raise UserError(
            f"{dataset.name} has no items with features that several clients have in common, of "
            "which difference features are made: use data.user_features=none."
        )
    if dataset.vocabulary:
        raise UserError(
            f"The items of {dataset.name} are ids, and difference features need numeric features "
            "of them: replace the items with pfljax.data.precompute, or use "
            "data.user_features=none."
        )
    if dataset.server is not None:
        raise UserError(
            f"The server's examples of {dataset.name} have no user, and so no difference features: "
            "use data.user_features=none, or no examples of the server."
        )
    return (dataset.items.astype(float) - dataset.mean) / dataset.std


def _labels(dataset: FederatedDataset) -> np.ndarray:
    """Returns `[num_examples, K]` float64, the targets as numbers."""
    if dataset.task == "regression":
        return (dataset.targets.astype(float)[:, np.newaxis] - dataset.target_mean) / (
            dataset.target_std
        )
    if dataset.task == "classification" and dataset.targets.ndim == 1:
        # That of the first class is minus the sum of the others.
        return (dataset.targets[:, np.newaxis] == np.arange(1, dataset.num_classes)).astype(float)
    raise UserError(
        f"Difference features compare labels or numbers, and {dataset.name} is a {dataset.task}: "
        "use data.user_features=none."
    )


def _rows(split: Split, client: int) -> slice:
    return slice(split.offsets[client], split.offsets[client] + split.sizes[client])


def _add(
    sums: np.ndarray, counts: np.ndarray, labels: np.ndarray, items: np.ndarray, rows: slice
) -> None:
    """Adds the labels of some rows to the sums `[num_items, K]` and counts of their items."""
    np.add.at(sums, items[rows], labels[rows])
    np.add.at(counts, items[rows], 1)
