"""Street numbers, and the five kinds of digits: MATLAB files of arrays, resized to 32x32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pfljax.data import checks, validate_arrays
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.image_files import squared
from pfljax.data.sources.prepared import read_prepared
from pfljax.errors import UserError

_SVHN = ("train_32x32.mat", "test_32x32.mat")
_DIGIT5 = (
    "mnist_data.mat",
    "mnistm_with_label.mat",
    "svhn_train_32x32.mat",
    "svhn_test_32x32.mat",
    "syn_number.mat",
    "usps_28x28.mat",
)
_SIDE = 32


def load_svhn(data_dir: str = "") -> Examples:
    """Returns the 73,257 training and 26,032 test images of SVHN's cropped digits.

    Args:
      data_dir: A directory with `train_32x32.mat` and `test_32x32.mat`, or with a directory `svhn`
        of them, or TFDS's prepared `svhn_cropped`.

    Returns:
      Examples with inputs `[99289, 32, 32, 3]` uint8 in 10 classes.

    Raises:
      UserError: The files are missing or damaged.
    """
    searched = files.directories(data_dir, ("svhn",))
    if paths := files.find(searched, _SVHN):
        parts = [_read(path, _svhn) for path in paths]
        images, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    else:
        images, labels = read_prepared(
            "svhn_cropped",
            data_dir,
            splits=("train", "test"),
            take=lambda example: (example["image"], example["label"]),
            searched=searched,
            files=" and ".join(_SVHN),
        )
    return Examples("svhn", images, labels.astype(np.int32), 10, mean=127.5, std=127.5)


def load_digit5(data_dir: str = "", *, largest: int = 34000) -> Examples:
    """Returns MNIST, MNIST-M, SVHN, synthetic digits and USPS, which are the clients.

    Args:
      data_dir: A directory with the six files of Digit-Five, or with a directory `digit5` or
        `Digit-Five` of them: `mnist_data.mat`, `mnistm_with_label.mat`, `svhn_train_32x32.mat`,
        `svhn_test_32x32.mat`, `syn_number.mat`, `usps_28x28.mat`.
      largest: The maximum number of examples of a domain; the first ones are kept.

    Returns:
      Examples with inputs `[n, 32, 32, 3]` uint8 in 10 classes.

    Raises:
      UserError: The files are missing or damaged.

    References:
      Peng, Bai, Xia, Huang, Saenko, Wang, "Moment Matching for Multi-Source Domain Adaptation",
      2019, https://arxiv.org/abs/1812.01754.
    """
    checks.whole("data.options.digit5.largest", largest, 1)
    searched = files.directories(data_dir, ("digit5", "Digit-Five"))
    paths = files.find(searched, _DIGIT5)
    if paths is None:
        raise files.absent("digit5", searched, f"put {', '.join(_DIGIT5)} there")
    mnist, mnist_m, svhn_train, svhn_test, synthetic, usps = paths
    svhn = [_read(path, _svhn) for path in (svhn_train, svhn_test)]
    domains = [
        _read(mnist, lambda file: _halves(file, "{}_32", "label_{}")),
        _read(mnist_m, lambda file: _halves(file, "{}", "label_{}")),
        tuple(np.concatenate(each) for each in zip(*svhn, strict=True)),
        _read(synthetic, lambda file: _halves(file, "{}_data", "{}_label")),
        _read(usps, _usps),
    ]
    inputs = np.concatenate([_resized(images[:largest]) for images, _ in domains])
    labels = np.concatenate([labels[:largest] for _, labels in domains]).astype(np.int32)
    sizes = [len(labels[:largest]) for _, labels in domains]
    owners = np.repeat(np.arange(len(domains), dtype=np.int32), sizes)
    return Examples("digit5", inputs, labels, 10, mean=127.5, std=127.5, owners=owners)


def _read(path: Path, take: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images `[n, side, side, 3]` uint8 and labels `[n]` that `take` extracts."""
    try:
        images, labels = take(files.load_matlab(path))
        if images.ndim != 4 or images.shape[3] != 3 or len(images) != len(labels):
            raise ValueError(f"images of shape {images.shape}, labels of shape {labels.shape}")
        images = validate_arrays.pixels(path, images, remedy=files.FETCH_AGAIN)
        return images, files.labels_below(path, labels, 10)
    except UserError:
        raise
    except Exception as error:  # Damaged files fail in many ways.
        raise UserError(
            f"{path} is damaged or not the MATLAB file of that name: {files.FETCH_AGAIN}."
        ) from error


def _svhn(file: dict) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels; the digit 0 has the label 10 in the file."""
    return file["X"].transpose(3, 0, 1, 2), file["y"].ravel() % 10


def _halves(file: dict, images: str, labels: str) -> tuple[np.ndarray, np.ndarray]:
    parts = [(file[images.format(part)], file[labels.format(part)]) for part in ("train", "test")]
    return (
        np.concatenate([_coloured(pixels) for pixels, _ in parts]),
        np.concatenate([_numbers(marks) for _, marks in parts]),
    )


def _usps(file: dict) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of the rows train and test; pixels `[n, 1, 28, 28]` from 0 to 1."""
    parts = [(np.rint(np.asarray(pixels)[:, 0] * 255), marks) for pixels, marks in file["dataset"]]
    return (
        np.concatenate([_coloured(pixels) for pixels, _ in parts]),
        np.concatenate([_numbers(marks) for _, marks in parts]),
    )


def _coloured(pixels: np.ndarray) -> np.ndarray:
    """Returns images with three channels; a grey channel is repeated."""
    if pixels.ndim == 4 and pixels.shape[3] == 3:
        return pixels
    grey = pixels.reshape(len(pixels), *pixels.shape[1:3], 1)
    return np.repeat(grey, 3, axis=3)


def _numbers(marks: np.ndarray) -> np.ndarray:
    """Returns labels from one-hot rows, or from a column in which 0 may be stored as 10."""
    return marks.argmax(axis=1) if marks.shape[1] == 10 else marks.ravel() % 10


def _resized(images: np.ndarray) -> np.ndarray:
    if images.shape[1:3] == (_SIDE, _SIDE):
        return images
    return np.stack([squared(Image.fromarray(image), _SIDE) for image in images])
