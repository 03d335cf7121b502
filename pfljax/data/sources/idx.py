"""MNIST and data sets of the same format: idx files of 28x28 images, or TFDS."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from pfljax.data import checks
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.prepared import read_prepared
from pfljax.errors import UserError

# The names under which MNIST and Fashion-MNIST are distributed, each with or without `.gz`.
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_IDX_UNSIGNED_BYTES = 0x08
# The number of classes of EMNIST's parts, and the first label.
_EMNIST_PARTS = {
    "digits": (10, 0),
    "mnist": (10, 0),
    "letters": (26, 1),
    "balanced": (47, 0),
    "bymerge": (47, 0),
    "byclass": (62, 0),
}


def load_mnist(data_dir: str = "") -> Examples:
    """Returns MNIST's 60,000 training images followed by its 10,000 test images.

    Args:
      data_dir: A directory with the four idx files, or with a directory `mnist` of them, or TFDS's
        prepared data; empty means TFDS's own default directory.

    Returns:
      Examples with inputs `[70000, 28, 28, 1]` uint8.

    Raises:
      UserError: The files are missing or damaged.
    """
    return _load_idx_or_tfds("mnist", ("mnist",), data_dir)


def load_fashion_mnist(data_dir: str = "") -> Examples:
    """Returns Fashion-MNIST's 60,000 training images followed by its 10,000 test images.

    Args:
      data_dir: A directory with the four idx files, or with a directory `fashion-mnist` or
        `fashion_mnist` of them, or TFDS's prepared data; empty means TFDS's own default directory.

    Returns:
      Examples with inputs `[70000, 28, 28, 1]` uint8.

    Raises:
      UserError: The files are missing or damaged.
    """
    return _load_idx_or_tfds("fashion_mnist", ("fashion-mnist", "fashion_mnist"), data_dir)


def load_emnist(data_dir: str = "", *, part: str = "digits") -> Examples:
    """Returns the training images of a part of EMNIST, then its test images, upright.

    Args:
      data_dir: A directory with `emnist-PART-train-images-idx3-ubyte.gz` and the other three, or
        with a directory `emnist` or `gzip` of them, or TFDS's prepared data.
      part: `digits` (280,000 in 10 classes), `mnist`, `letters` (26), `balanced` (47), `bymerge`
        (47) or `byclass` (62).

    Returns:
      Examples with inputs `[n, 28, 28, 1]` uint8.

    Raises:
      UserError: The files are missing or damaged.
    """
    checks.choice("data.options.emnist.part", part, _EMNIST_PARTS)
    num_classes, first_label = _EMNIST_PARTS[part]
    expected = tuple(
        f"emnist-{part}-{split}-{kind}-ubyte"
        for split in ("train", "test")
        for kind in ("images-idx3", "labels-idx1")
    )
    searched = files.directories(data_dir, ("emnist", "gzip"))
    found = files.find(searched, expected)
    if found is None:
        images, labels = _read_prepared(f"emnist/{part}", data_dir, searched, expected)
        labels -= first_label
    else:
        images, labels = _read_pairs(found, num_classes, first_label)
    # Both formats store the images transposed.
    upright = np.ascontiguousarray(images.swapaxes(1, 2))
    return Examples(f"emnist_{part}", upright, labels, num_classes, mean=127.5, std=127.5)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Returns the array of unsigned bytes in an idx file, gzipped or plain.

    Args:
      path: The file.
      dimensions: The required number of axes: 3 for images, 1 for labels.

    Returns:
      A read-only uint8 array.

    Raises:
      UserError: The file cannot be read, or is not such an idx file.
    """
    content = files.read(path)
    magic = bytes([0, 0, _IDX_UNSIGNED_BYTES, dimensions])
    if content[:4] != magic:
        raise UserError(
            f"{path} starts with {content[:4].hex() or 'nothing'}, but an idx file of "
            f"{dimensions}-dimensional bytes starts with {magic.hex()}: {files.FETCH_AGAIN}."
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise UserError(f"{path} ends inside its header: {files.FETCH_AGAIN}.")
    shape = tuple(np.frombuffer(content, ">u4", dimensions, offset=4).tolist())
    if len(content) - start != math.prod(shape):
        raise UserError(
            f"{path} has {len(content) - start} bytes where its header {shape} claims "
            f"{math.prod(shape)}: {files.FETCH_AGAIN}."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _load_idx_or_tfds(name: str, folders: tuple[str, ...], data_dir: str) -> Examples:
    """Returns 28x28 images of 10 classes from idx files, or else from TFDS's prepared data."""
    searched = files.directories(data_dir, folders)
    found = files.find(searched, IDX_FILES)
    if found is None:
        images, labels = _read_prepared(name, data_dir, searched, IDX_FILES)
    else:
        images, labels = _read_pairs(found, num_classes=10)
    return Examples(name, images, labels, num_classes=10, mean=127.5, std=127.5)


def _read_prepared(
    builder: str, data_dir: str, searched: list[Path], expected: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_prepared(
        builder,
        data_dir,
        splits=("train", "test"),
        take=lambda example: (example["image"], example["label"]),
        searched=searched,
        files=", ".join(f"{file}.gz" for file in expected),
    )
    return images, labels.astype(np.int32)


def _read_pairs(
    paths: list[Path], num_classes: int, first_label: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images `[n, 28, 28, 1]` and labels `[n]` of matching pairs of files."""
    all_images, all_labels = [], []
    for images_path, labels_path in zip(paths[::2], paths[1::2], strict=True):
        images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
        if images.shape[1:] != (28, 28):
            raise UserError(
                f"{images_path} has images of {images.shape[1]}x{images.shape[2]} pixels where "
                "28x28 are expected: put the original file there."
            )
        files.same_length(images=(images_path, images), labels=(labels_path, labels))
        last = first_label + num_classes - 1
        outside = (labels < first_label) | (labels > last)
        if outside.any():
            raise UserError(
                f"{labels_path} has the label {labels[outside][0]} where labels are "
                f"{first_label} to {last}: put the original file there."
            )
        all_images.append(images[..., np.newaxis])
        all_labels.append(labels.astype(np.int32) - first_label)
    return np.concatenate(all_images), np.concatenate(all_labels)
