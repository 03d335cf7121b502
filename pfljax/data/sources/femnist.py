"""FEMNIST: handwritten digits and letters, whose writers are the clients."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.leaf import find_leaf, read_leaf
from pfljax.errors import UserError

_CLASSES = 62
_ARRAYS = ("images.npy", "labels.npy", "writer.npy")


def load_femnist(data_dir: str = "") -> Examples:
    """Returns 62 classes of characters, 0-9, A-Z, a-z, dark on white, owned by their writers.

    Args:
      data_dir: holds `images.npy`, `labels.npy` and `writer.npy` (plain or packed as .xz), or
        LEAF's JSON files in `all_data`, or a folder `femnist` or `femnist-500` that does.

    Returns:
      Examples with inputs `[n, 28, 28, 1]` uint8.

    Raises:
      UserError: the files are absent or damaged.

    References:
      Caldas, Duddu, Wu, Li, Konecny, McMahan, Smith, Talwalkar, "LEAF: A Benchmark for Federated
      Settings", 2018, https://arxiv.org/abs/1812.01097.
    """
    places = files.directories(data_dir, ("femnist", "femnist-500"))
    if paths := files.find(places, _ARRAYS):
        images, labels, writers = _read_arrays(paths)
    elif paths := find_leaf(places):
        images, labels, writers = _read_leaf_users(paths)
    else:
        raise files.absent(
            "femnist",
            places,
            f"name in data.dir a directory that holds {', '.join(_ARRAYS)}, or the folder all_data "
            "that LEAF's preprocessing of femnist writes",
        )
    return Examples("femnist", images, labels, _CLASSES, mean=127.5, std=127.5, owners=writers)


def _read_arrays(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    images = files.read_array(paths[0], (None, 28, 28))
    labels, writers = (files.read_array(path, (None,)) for path in paths[1:])
    for path, each in zip(paths[1:], (labels, writers), strict=True):
        files.same_length(images=(paths[0], images), entries=(path, each))
    labels = files.labels_below(paths[1], labels, _CLASSES)
    return images[..., np.newaxis], labels, writers.astype(np.int32)


def _read_leaf_users(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    numbers: dict[str, int] = {}
    images, labels, writers = [], [], []
    for user, inputs, targets in read_leaf(paths):
        number = numbers.setdefault(user, len(numbers))
        if not targets:
            continue
        try:
            pixels = np.array(inputs, np.float64).reshape(len(targets), 28, 28, 1)
        except ValueError as error:
            raise UserError(
                f"{paths[0].parent} has examples of {user} that are not 784 numbers: run LEAF's "
                "preprocessing of femnist again."
            ) from error
        images.append(np.rint(pixels * 255).clip(0, 255).astype(np.uint8))
        labels.append(files.labels_below(paths[0].parent, np.array(targets), _CLASSES))
        writers.append(np.full(len(targets), number, np.int32))
    return np.concatenate(images), np.concatenate(labels), np.concatenate(writers)
