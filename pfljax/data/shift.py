"""Shifts by groups of clients, of features or of labels (concept shift).

A shift is applied to the stored examples of a federated data set, after any partition, and copies
the array that it changes. Client k belongs to group k mod `num_groups`, counted after held-out
clients were moved to the end, so that both kinds of clients have all groups; group 0 keeps its
examples unchanged. The random numbers of a client do not depend on other clients' examples, and the
same seed gives the same arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from scipy import ndimage

from pfljax.data import checks
from pfljax.data.dataset import FederatedDataset
from pfljax.errors import UserError


def group_of_clients(num_clients: int, num_groups: int) -> np.ndarray:
    """Returns the group of each client, `[num_clients]` int64.

    Args:
      num_clients: Number of clients, including held-out ones.
      num_groups: Number of groups; with fewer clients, some are empty.

    Raises:
      UserError: `num_groups` is invalid.

    >>> group_of_clients(5, 2).tolist()
    [0, 1, 0, 1, 0]
    """
    return np.arange(num_clients) % checks.whole("num_groups", num_groups, 1)


def rotate(images: np.ndarray, amount: float, **_) -> np.ndarray:
    """Rotates images counter-clockwise by the fraction `amount` of a full turn.

    Quarter turns of square images are exact. Others interpolate between pixels, and extend the
    border into corners that the rotated image does not cover.

    Args:
      images: `[n, height, width, channels]` numbers.
      amount: The fraction of a full turn, in [0, 1).

    Returns:
      Images of the same shape and dtype.
    """
    turns = 4 * amount
    if turns.is_integer() and images.shape[1] == images.shape[2]:
        return np.rot90(images, int(turns), axes=(1, 2))
    return ndimage.rotate(images, 360 * amount, axes=(2, 1), reshape=False, order=1, mode="nearest")


def fade(images: np.ndarray, amount: float, *, strength: float, **_) -> np.ndarray:
    """Reduces contrast: moves each example towards its own mean, by `strength * amount`.

    Args:
      images: `[n, ...]` numbers.
      amount: The amount of the shift, in [0, 1].
      strength: The strength of the shift, in (0, 1]; with 1 and amount 1, only the mean remains.

    Returns:
      `[n, ...]` float64.
    """
    mean = images.mean(axis=tuple(range(1, images.ndim)), keepdims=True)
    return mean + (1 - strength * amount) * (images - mean)


def add_noise(
    images: np.ndarray, amount: float, *, strength: float, scale: float, rng: np.random.Generator
) -> np.ndarray:
    """Adds normal noise of standard deviation `strength * amount * scale`.

    Args:
      images: `[n, ...]` numbers.
      amount: The amount of the shift, in [0, 1].
      strength: The strength of the noise, in units of `scale`.
      scale: The data set's `std`, in stored units.
      rng: The random number generator.

    Returns:
      `[n, ...]` float64.
    """
    return images + strength * amount * scale * rng.standard_normal(images.shape)


_FEATURE_SHIFTS: dict[str, Callable[..., np.ndarray]] = {
    "rotation": rotate,
    "contrast": fade,
    "noise": add_noise,
}
FEATURE_SHIFTS = ("none", *_FEATURE_SHIFTS)
CONCEPT_SHIFTS = ("none", "permutation")


def shift_features(
    dataset: FederatedDataset, kind: str, *, num_groups: int, strength: float, seed: int
) -> FederatedDataset:
    """Changes the inputs of each group of clients.

    Args:
      dataset: A data set with numeric inputs, not ids; images are `[height, width, channels]`.
      kind: `none`; `rotation`: group g is rotated by g / num_groups of a full turn; `contrast` and
        `noise`: `fade` and `add_noise` with the amount g / (num_groups - 1).
      num_groups: Number of groups, at least 2.
      strength: The loss of contrast, or the noise, of the last group; unused for a rotation.
      seed: The seed of the noise.

    Returns:
      The data set with a changed copy of the inputs, of the same dtype and within the same range.

    Raises:
      UserError: An argument is invalid, or the inputs have another kind.
    """
    checks.choice("feature_shift", kind, FEATURE_SHIFTS)
    if kind == "none":
        return dataset
    _require_groups("feature_shift", num_groups)
    strength = checks.number("shift_strength", strength, 0, 1)
    _require_pixels(dataset, kind)
    inputs = np.array(dataset.inputs)
    low, high = inputs.min(), inputs.max()
    streams = np.random.SeedSequence(seed, spawn_key=(3,)).spawn(dataset.num_clients)
    for client, group, rows in _clients(dataset, num_groups):
        if group == 0:
            continue
        shifted = _FEATURE_SHIFTS[kind](
            inputs[rows],
            group / (num_groups if kind == "rotation" else num_groups - 1),
            strength=strength,
            scale=dataset.std,
            rng=np.random.default_rng(streams[client]),
        )
        if inputs.dtype.kind in "iu" and shifted.dtype.kind == "f":
            shifted = np.rint(shifted)
        inputs[rows] = np.clip(shifted, low, high)
    return dataset._replace(inputs=inputs)


def shift_concept(
    dataset: FederatedDataset, kind: str, *, num_groups: int, seed: int
) -> FederatedDataset:
    """Permutes the labels of each group of clients.

    The classes are ordered randomly on a circle, and group g replaces the label of each class by
    that of the class g positions further. Thus no two groups agree on any class.

    Args:
      dataset: A data set with one label per example.
      kind: `none` or `permutation`.
      num_groups: Number of groups, from 2 to the number of classes.
      seed: The seed of the order on the circle.

    Returns:
      The data set with a changed copy of the targets.

    Raises:
      UserError: An argument is invalid.
    """
    checks.choice("concept_shift", kind, CONCEPT_SHIFTS)
    if kind == "none":
        return dataset
    _require_groups("concept_shift", num_groups)
    if dataset.task != "classification":
        raise UserError(
            f"The targets of {dataset.name} are not labels and cannot be permuted: use "
            "concept_shift=none."
        )
    if num_groups > dataset.num_classes:
        raise UserError(
            f"num_groups is {num_groups}, but a permutation of {dataset.num_classes} labels allows "
            f"at most {dataset.num_classes} groups."
        )
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(4,)))
    circle = rng.permutation(dataset.num_classes).astype(dataset.targets.dtype)
    position = np.argsort(circle)
    targets = np.array(dataset.targets)
    for _, group, rows in _clients(dataset, num_groups):
        targets[rows] = circle[(position[targets[rows]] + group) % dataset.num_classes]
    return dataset._replace(targets=targets)


def _clients(dataset: FederatedDataset, num_groups: int) -> Iterator[tuple[int, int, slice]]:
    """Yields each client, its group, and the rows of its examples, which are consecutive."""
    ends = dataset.test.offsets + dataset.test.sizes
    groups = group_of_clients(dataset.num_clients, num_groups)
    for client, (group, start, end) in enumerate(
        zip(groups.tolist(), dataset.train.offsets, ends, strict=True)
    ):
        yield client, group, slice(int(start), int(end))


def _require_groups(name: str, num_groups: int) -> None:
    if checks.whole("num_groups", num_groups, 1) < 2:
        raise UserError(f"{name} shifts groups of clients: use num_groups=2 or more.")


def _require_pixels(dataset: FederatedDataset, kind: str) -> None:
    inputs = dataset.inputs
    if isinstance(inputs, Mapping):
        raise UserError(
            f"feature_shift={kind} changes one array, and the inputs of {dataset.name} are "
            f"{', '.join(inputs)}: use feature_shift=none."
        )
    numbers = not dataset.vocabulary and (inputs.dtype == np.uint8 or inputs.dtype.kind == "f")
    if not numbers or (kind == "rotation" and inputs.ndim != 4):
        wanted = "images [height, width, channels]" if kind == "rotation" else "pixels or floats"
        raise UserError(
            f"feature_shift={kind} needs {wanted}, but the inputs of {dataset.name} have shape "
            f"{inputs.shape[1:]} and dtype {inputs.dtype}: use feature_shift=none."
        )
