"""Pools of examples that belong to no client yet: a partition deals them out.

Each loader takes the directory the user gave and returns `Examples`. Nothing is downloaded.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pfljax.errors import UserError

# The names under which MNIST and Fashion-MNIST are distributed, each with or without `.gz`.
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_IDX_UNSIGNED_BYTES = 0x08
_GZIP_START = b"\x1f\x8b"


class Examples(NamedTuple):
    """A pool of labelled examples in the host's memory.

    Attributes:
      name: how reports call it.
      inputs: `[n, ...]` in the dtype in which they are distributed.
      targets: `[n]` int32 labels in `[0, num_classes)`.
      num_classes: `C`.
      mean: subtracted from the inputs on the device, in stored units.
      std: divides the inputs after that, in stored units.
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    num_classes: int
    mean: float = 0.0
    std: float = 1.0


def load_digits(data_dir: str = "") -> Examples:
    """Returns the 1,797 handwritten digits that scikit-learn carries with it.

    Args:
      data_dir: ignored, since the digits come with the package.

    Returns:
      Examples with inputs `[1797, 8, 8, 1]` uint8, their values 0 to 16.

    >>> load_digits().inputs.shape
    (1797, 8, 8, 1)
    """
    from sklearn import datasets  # slow to import, and only this loader needs it

    digits = datasets.load_digits()
    return Examples(
        name="digits",
        inputs=digits.images.astype(np.uint8)[..., np.newaxis],
        targets=digits.target.astype(np.int32),
        num_classes=10,
        mean=0.0,
        std=16.0,
    )


def load_mnist(data_dir: str = "") -> Examples:
    """Returns MNIST's 60,000 training images followed by its 10,000 test images.

    Args:
      data_dir: holds the four idx files, or a folder `mnist` that does, or TFDS's prepared data;
        empty means TFDS's own default directory.

    Returns:
      Examples with inputs `[70000, 28, 28, 1]` uint8.

    Raises:
      UserError: the files are absent or damaged.
    """
    return _load_idx_or_tfds("mnist", ("mnist",), data_dir)


def load_fashion_mnist(data_dir: str = "") -> Examples:
    """Returns Fashion-MNIST's 60,000 training images followed by its 10,000 test images.

    Args:
      data_dir: holds the four idx files, or a folder `fashion-mnist` or `fashion_mnist` that
        does, or TFDS's prepared data; empty means TFDS's own default directory.

    Returns:
      Examples with inputs `[70000, 28, 28, 1]` uint8.

    Raises:
      UserError: the files are absent or damaged.
    """
    return _load_idx_or_tfds("fashion_mnist", ("fashion-mnist", "fashion_mnist"), data_dir)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Returns the array of unsigned bytes in an idx file, gzipped or plain.

    Args:
      path: the file.
      dimensions: how many axes it must have: 3 for images, 1 for labels.

    Returns:
      A read-only uint8 array.

    Raises:
      UserError: the file cannot be read, or is not the idx file it should be.
    """
    remedy = "fetch the file again"
    try:
        content = path.read_bytes()
        # Browsers unpack some downloads silently, so the content decides and not the name.
        if content.startswith(_GZIP_START):
            content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is a truncated or damaged gzip file: {remedy}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file.") from error
    magic = bytes([0, 0, _IDX_UNSIGNED_BYTES, dimensions])
    if content[:4] != magic:
        raise UserError(
            f"{path} begins with {content[:4].hex() or 'nothing'} where an idx file of "
            f"{dimensions}-dimensional bytes begins with {magic.hex()}: {remedy}."
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise UserError(f"{path} ends inside its header: {remedy}.")
    shape = tuple(np.frombuffer(content, ">u4", dimensions, offset=4).tolist())
    if len(content) - start != math.prod(shape):
        raise UserError(
            f"{path} holds {len(content) - start} bytes where its header {shape} promises "
            f"{math.prod(shape)}: {remedy}."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _load_idx_or_tfds(name: str, folders: tuple[str, ...], data_dir: str) -> Examples:
    """Returns 28x28 images of 10 classes from idx files, or else as TFDS prepared them."""
    # A folder of the right name comes first: the file names do not tell MNIST from Fashion-MNIST.
    root = Path(data_dir).expanduser()
    directories = [root / folder for folder in folders] + [root] if data_dir else []
    for directory in directories:
        found = {file: _find_idx(directory, file) for file in IDX_FILES}
        if not any(found.values()):
            continue
        missing = [file for file, path in found.items() if path is None]
        if missing:
            raise UserError(
                f"{directory} lacks {', '.join(missing)} (plain or .gz): put all four idx files "
                "there."
            )
        train_images, train_labels, test_images, test_labels = found.values()
        parts = [_read_pair(train_images, train_labels), _read_pair(test_images, test_labels)]
        break
    else:
        parts = _read_tfds(name, data_dir, directories)
    return Examples(
        name=name,
        inputs=np.concatenate([images for images, _ in parts]),
        targets=np.concatenate([labels for _, labels in parts]).astype(np.int32),
        num_classes=10,
        mean=127.5,
        std=127.5,
    )


def _find_idx(directory: Path, file: str) -> Path | None:
    candidates = (directory / f"{file}.gz", directory / file)
    return next((path for path in candidates if path.is_file()), None)


def _read_pair(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns images `[n, 28, 28, 1]` and labels `[n]`, found to fit each other."""
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (28, 28):
        raise UserError(
            f"{images_path} holds images of {images.shape[1]}x{images.shape[2]} pixels where "
            "28x28 are expected: put the original file there."
        )
    if len(images) != len(labels):
        raise UserError(
            f"{images_path} holds {len(images)} images but {labels_path} {len(labels)} labels: "
            "fetch both files again from one source."
        )
    if labels.size and labels.max() > 9:
        raise UserError(
            f"{labels_path} holds the label {labels.max()} where labels are 0 to 9: "
            "put the original file there."
        )
    return images[..., np.newaxis], labels


def _read_tfds(
    name: str, data_dir: str, searched: list[Path]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns images and labels of both splits through TFDS's data sources, without TensorFlow.

    They come in TFDS's order, which is not that of the idx files: the same seed deals them out
    differently.
    """
    parts = []
    try:
        import tensorflow_datasets as tfds

        for split in ("train", "test"):
            source = tfds.data_source(name, split=split, data_dir=data_dir or None, download=False)
            elements = [source[index] for index in range(len(source))]
            parts.append(
                (
                    np.stack([element["image"] for element in elements]),
                    np.array([element["label"] for element in elements]),
                )
            )
    except Exception as error:  # TFDS raises a different type for each thing that is missing.
        where = " or ".join(map(str, searched)) or "data.dir, which is empty"
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        option = f" --data_dir={data_dir}" if data_dir else ""
        raise UserError(
            f"No {name} in {where}: name in data.dir a directory that holds "
            f"{', '.join(file + '.gz' for file in IDX_FILES)}, or, where TensorFlow is installed, "
            f"run `tfds build {name} --file_format=array_record{option}` "
            f"(TFDS now says: {reason})."
        ) from error
    return parts
