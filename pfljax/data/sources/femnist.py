"""FEMNIST: handwritten digits and letters; the writers are the clients."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pfljax.data import validate_arrays
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.leaf import find_leaf, read_leaf
from pfljax.errors import UserError

_CLASSES = 62
_SIDE = 28
_AGAIN = "run LEAF's preprocessing of femnist again"
_ARRAYS = ("images.npy", "labels.npy", "writer.npy")


def load_femnist(data_dir: str = "") -> Examples:
    """Returns 62 classes of characters, 0-9, A-Z, a-z, dark on white, owned by their writers.

    Args:
      data_dir: A directory with `images.npy`, `labels.npy` and `writer.npy` (plain or compressed as
        .xz), or LEAF's JSON files in `all_data`, or with a directory `femnist` or `femnist-500` of
        them.

    Returns:
      Examples with inputs `[n, 28, 28, 1]` uint8.

    Raises:
      UserError: The files are missing or damaged.

    References:
      Caldas, Duddu, Wu, Li, Konecny, McMahan, Smith, Talwalkar, "LEAF: A Benchmark for Federated
      Settings", 2018, https://arxiv.org/abs/1812.01097.
    """
    searched = files.directories(data_dir, ("femnist", "femnist-500"))
    if paths := files.find(searched, _ARRAYS):
        images, labels, writers = _read_arrays(paths)
    elif paths := find_leaf(searched):
        images, labels, writers = _read_leaf_users(paths)
    else:
        raise files.absent(
            "femnist",
            searched,
            f"set data.dir to a directory with {', '.join(_ARRAYS)}, or the directory "
            "all_data written by LEAF's preprocessing of femnist",
        )
    return Examples("femnist", images, labels, _CLASSES, mean=127.5, std=127.5, owners=writers)


def _read_arrays(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    images = files.read_array(paths[0], (None, 28, 28))
    images = validate_arrays.pixels(paths[0], images, remedy=files.FETCH_AGAIN)
    labels, writers = (files.read_array(path, (None,)) for path in paths[1:])
    for path, each in zip(paths[1:], (labels, writers), strict=True):
        files.same_length(images=(paths[0], images), entries=(path, each))
    labels = files.labels_below(paths[1], labels, _CLASSES)
    return images[..., np.newaxis], labels, files.owners(paths[2], writers)


def _read_leaf_users(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    numbers: dict[str, int] = {}
    images, labels, writers = [], [], []
    for path, user, inputs, targets in read_leaf(paths):
        number = numbers.setdefault(user, len(numbers))
        if not targets:
            continue
        pixels = _numbers(inputs)
        if pixels.shape != (len(targets), _SIDE**2):
            raise UserError(
                f"{path} has examples of {user} that are not {_SIDE**2} numbers: {_AGAIN}."
            )
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            outside = pixels[~((pixels >= 0) & (pixels <= 1))][0]
            raise UserError(
                f"{path} has the pixel {outside} of {user} where numbers from 0 to 1 are expected: "
                f"{_AGAIN}."
            )
        images.append(np.rint(pixels * 255).astype(np.uint8).reshape(-1, _SIDE, _SIDE, 1))
        classes = _numbers(targets)
        if classes.shape != (len(targets),):
            raise UserError(f"{path} has labels of {user} that are not numbers: {_AGAIN}.")
        labels.append(validate_arrays.labels(path, classes, _CLASSES, remedy=_AGAIN))
        writers.append(np.full(len(targets), number, np.int32))
    if not images:
        raise UserError(f"{paths[0].parent} has no example of any user: {_AGAIN}.")
    return np.concatenate(images), np.concatenate(labels), np.concatenate(writers)


def _numbers(values: list) -> np.ndarray:
    """Returns nested lists as an array of numbers; an empty one if they are not numbers."""
    try:
        array = np.array(values)  # no dtype, which would convert strings and nulls
    except ValueError:  # lists of several lengths
        return np.zeros(0)
    return array if array.dtype.kind in "iuf" else np.zeros(0)
