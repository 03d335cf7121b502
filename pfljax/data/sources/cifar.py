"""CIFAR-10 and CIFAR-100: pickled batches, binary batches, plain arrays, or TFDS."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from pfljax.data import checks, pickles, validate_arrays
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.prepared import read_prepared
from pfljax.errors import UserError

_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
_FOLDERS = {
    10: ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar10", "cifar10-subset"),
    100: ("cifar-100-python", "cifar-100-binary", "cifar100", "cifar100-subset"),
}
_PIXELS = 3 * 32 * 32
_SUPERCLASSES = 20


def load_cifar10(data_dir: str = "") -> Examples:
    """Returns CIFAR-10's 50,000 training images followed by its 10,000 test images.

    Args:
      data_dir: A directory with the six batches of the python or the binary version, or
        `train_images.npy`, `train_labels.npy` and the same of `test` (plain or compressed as .xz),
        or with a directory of a usual name of these, or TFDS's prepared data.

    Returns:
      Examples with inputs `[60000, 32, 32, 3]` uint8.

    Raises:
      UserError: The files are missing or damaged.
    """
    images, (labels,) = _load(10, data_dir, ("labels",))
    return Examples("cifar10", images, labels, 10, mean=127.5, std=127.5)


def load_cifar100(data_dir: str = "", *, labels: str = "fine") -> Examples:
    """Returns CIFAR-100's 50,000 training images followed by its 10,000 test images.

    Args:
      data_dir: A directory with `train` and `test` of the python version or `train.bin` and
        `test.bin` of the binary one, or `train_images.npy`, `train_fine_labels.npy`,
        `train_coarse_labels.npy` and the same of `test` (plain or compressed as .xz), or with a
        directory of a usual name of these, or TFDS's prepared data.
      labels: `fine` for 100 classes, or `coarse` for the 20 superclasses.

    Returns:
      Examples with inputs `[60000, 32, 32, 3]` uint8; with fine labels, superclasses are the owners
      of their examples, and are used by the partition `groups`.

    Raises:
      UserError: The files are missing or damaged.
    """
    checks.choice("data.options.cifar100.labels", labels, ("fine", "coarse"))
    images, (fine, coarse) = _load(100, data_dir, ("fine_labels", "coarse_labels"))
    if labels == "coarse":
        return Examples("cifar100_coarse", images, coarse, _SUPERCLASSES, mean=127.5, std=127.5)
    superclasses = np.zeros(100, np.int32)
    superclasses[fine] = coarse
    return Examples(
        "cifar100", images, fine, 100, 127.5, 127.5, owners=coarse, superclasses=superclasses
    )


def _load(
    num_classes: int, data_dir: str, kinds: tuple[str, ...]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns images, and the labels of each kind."""
    bounds = dict(zip(kinds, (num_classes, _SUPERCLASSES), strict=False))
    searched = files.directories(data_dir, _FOLDERS[num_classes])
    names = _BATCHES if num_classes == 10 else ("train", "test")
    arrays = [f"{part}_{kind}" for part in ("train", "test") for kind in ("images", *kinds)]
    if paths := files.find(searched, names):
        parts = [_read_pickle(path, kinds) for path in paths]
    elif paths := files.find(searched, [f"{name}.bin" for name in names]):
        parts = [_read_binary(path, kinds) for path in paths]
    elif paths := files.find(searched, [f"{array}.npy" for array in arrays]):
        width = 1 + len(kinds)
        parts = [_read_arrays(paths[start : start + width]) for start in (0, width)]
        paths = paths[::width]
    else:
        fields = ("label",) if num_classes == 10 else ("label", "coarse_label")
        images, *labels = read_prepared(
            f"cifar{num_classes}",
            data_dir,
            splits=("train", "test"),
            take=lambda example: (example["image"], *(example[field] for field in fields)),
            searched=searched,
            files=f"{', '.join(names)} of the python version",
        )
        return images, [each.astype(np.int32) for each in labels]
    all_labels = []
    for kind, bound in bounds.items():
        pieces = [
            files.labels_below(path, labels[kinds.index(kind)], bound)
            for path, (_, labels) in zip(paths, parts, strict=True)
        ]
        all_labels.append(np.concatenate(pieces))
    return np.concatenate([images for images, _ in parts]), all_labels


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    """Returns `[n, 3072]` pixels, stored channel by channel, as `[n, 32, 32, 3]`."""
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _read_pickle(path: Path, kinds: tuple[str, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Reads a batch pickled by Python 2 or 3, without trusting it."""
    content = files.read(path)
    try:
        batch = pickles.load_arrays(content, encoding="latin1")
        # Python 3 writes the keys as bytes if it read them as bytes.
        batch = {key.decode() if isinstance(key, bytes) else key: batch[key] for key in batch}
        pixels = batch["data"]
        labels = [_flat(batch[kind]) for kind in kinds]
        if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1:] != (_PIXELS,):
            raise ValueError(f"data of shape {pixels.shape}")
        if any(each.shape != pixels.shape[:1] or each.dtype.kind not in "iu" for each in labels):
            raise ValueError(f"{len(pixels)} images but not as many labels")
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged or contains objects other than arrays ({error}), which could "
            f"execute code: get it from a source you trust, or {files.FETCH_AGAIN}."
        ) from error
    except Exception as error:  # Bytes that are not a pickle fail in many ways.
        raise UserError(f"{path} is damaged or not a CIFAR batch: {files.FETCH_AGAIN}.") from error
    return _channels_last(pixels), labels


def _flat(labels: list[int] | np.ndarray) -> np.ndarray:
    """Returns labels as an array; nested lists, which could exhaust the memory, are refused."""
    if isinstance(labels, list) and not all(
        isinstance(label, int | np.integer) for label in labels
    ):
        raise ValueError("labels that are not numbers")
    return np.array(labels)


def _read_binary(path: Path, kinds: tuple[str, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Reads records of the labels, coarse before fine, and the pixels."""
    content, width = files.read(path), len(kinds) + _PIXELS
    if not content or len(content) % width:
        raise UserError(
            f"{path} has {len(content)} bytes, which is not a multiple of the record size {width}: "
            f"{files.FETCH_AGAIN}."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, width)
    labels = [records[:, column] for column in range(len(kinds))][::-1]
    return _channels_last(records[:, len(kinds) :]), labels


def _read_arrays(paths: list[Path]) -> tuple[np.ndarray, list[np.ndarray]]:
    images = files.read_array(paths[0], (None, 32, 32, 3))
    images = validate_arrays.pixels(paths[0], images, remedy=files.FETCH_AGAIN)
    labels = [files.read_array(path, (None,)) for path in paths[1:]]
    for path, each in zip(paths[1:], labels, strict=True):
        files.same_length(images=(paths[0], images), labels=(path, each))
    return images, labels
