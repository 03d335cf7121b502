"""Shifts by groups of clients: how examples look (features), or what they are called (labels).

A shift is applied to the stored examples of a federated data set, whatever dealt them out, and
copies the array that it changes. Client k belongs to group k mod `num_groups`, after unseen clients
were placed last, so that both kinds have clients of every group; group 0 keeps its examples as
they are. No random number depends on another client's examples, so that the same seed
gives the same arrays.
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
      num_clients: how many clients, the unseen ones included.
      num_groups: how many groups; with fewer clients, some stay empty.

    Raises:
      UserError: `num_groups` makes no sense.

    >>> group_of_clients(5, 2).tolist()
    [0, 1, 0, 1, 0]
    """
    return np.arange(num_clients) % checks.whole("num_groups", num_groups, 1)


def rotate(images: np.ndarray, share: float, **_) -> np.ndarray:
    """Turns images counter-clockwise by `share` of a full turn.

    Quarter turns of square images are exact. Others interpolate between pixels, and continue the
    border where the turned image does not reach.

    Args:
      images: `[n, height, width, channels]` of any numbers.
      share: in [0, 1).

    Returns:
      Images of the same shape and dtype.
    """
    turns = 4 * share
    if turns.is_integer() and images.shape[1] == images.shape[2]:
        return np.rot90(images, int(turns), axes=(1, 2))
    return ndimage.rotate(images, 360 * share, axes=(2, 1), reshape=False, order=1, mode="nearest")


def fade(images: np.ndarray, share: float, *, strength: float, **_) -> np.ndarray:
    """Takes contrast away: each example moves towards its own mean, by `strength * share`.

    Args:
      images: `[n, ...]` of any numbers.
      share: in [0, 1].
      strength: in (0, 1]; at 1 and share 1 nothing but the mean is left.

    Returns:
      `[n, ...]` float64.
    """
    mean = images.mean(axis=tuple(range(1, images.ndim)), keepdims=True)
    return mean + (1 - strength * share) * (images - mean)


def add_noise(
    images: np.ndarray, share: float, *, strength: float, scale: float, rng: np.random.Generator
) -> np.ndarray:
    """Adds normal noise of standard deviation `strength * share * scale`.

    Args:
      images: `[n, ...]` of any numbers.
      share: in [0, 1].
      strength: of the noise, in units of `scale`.
      scale: the data set's `std`, in stored units.
      rng: what to draw with.

    Returns:
      `[n, ...]` float64.
    """
    return images + strength * share * scale * rng.standard_normal(images.shape)


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
    """Changes what the examples of each group of clients look like.

    Args:
      dataset: numbers such as pixels, not ids of words; images are `[height, width, channels]`.
      kind: `none`; `rotation`: group g is turned by g / num_groups of a full turn; `contrast` and
        `noise`: see `fade` and `add_noise`, at the share g / (num_groups - 1).
      num_groups: how many groups, at least 2.
      strength: of the last group's loss of contrast or noise; not read for a rotation.
      seed: whole number, decides the noise.

    Returns:
      The data set with inputs of the same dtype, a copy, within the range of the old ones.

    Raises:
      UserError: an argument makes no sense, or the inputs are of another kind.
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
    """Changes what the examples of each group of clients are called.

    The classes stand on a circle in random order, and group g calls each by the name of the class
    g places further. So no two groups agree on any class.

    Args:
      dataset: has one label per example.
      kind: `none` or `permutation`.
      num_groups: how many groups, from 2 to the number of classes.
      seed: whole number, decides the order on the circle.

    Returns:
      The data set with other targets, a copy.

    Raises:
      UserError: an argument makes no sense.
    """
    checks.choice("concept_shift", kind, CONCEPT_SHIFTS)
    if kind == "none":
        return dataset
    _require_groups("concept_shift", num_groups)
    if dataset.task != "classification":
        raise UserError(
            f"The targets of {dataset.name} are no labels, and cannot be permuted: use "
            "concept_shift=none."
        )
    if num_groups > dataset.num_classes:
        raise UserError(
            f"num_groups is {num_groups}, but a permutation of {dataset.num_classes} labels allows "
            f"at most {dataset.num_classes} groups."
        )
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(4,)))
    circle = rng.permutation(dataset.num_classes).astype(dataset.targets.dtype)
    place = np.argsort(circle)
    targets = np.array(dataset.targets)
    for _, group, rows in _clients(dataset, num_groups):
        targets[rows] = circle[(place[targets[rows]] + group) % dataset.num_classes]
    return dataset._replace(targets=targets)


def _clients(dataset: FederatedDataset, num_groups: int) -> Iterator[tuple[int, int, slice]]:
    """Yields each client, its group, and the rows of its examples, which follow one another."""
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
