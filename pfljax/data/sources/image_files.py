"""Data sets that are folders or lists of image files of any size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pfljax.data import checks
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.errors import UserError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp"}


class Listing(NamedTuple):
    """Which image files there are, and whose.

    Attributes:
      paths: `n` files.
      labels: `n` whole numbers in `[0, num_classes)`.
      num_classes: `C`.
      owners: `n` whole numbers, the natural client of each; None where there are none.
    """

    paths: list[Path]
    labels: list[int]
    num_classes: int
    owners: list[int] | None = None


def class_tree(roots: Sequence[Path]) -> Listing:
    """Lists the images in `ROOT/CLASS/`, or anywhere below, for each root in turn.

    Args:
      roots: directories, such as one for training and one for testing; a class has the same name
        in each, and classes are numbered in the order of their names.

    Raises:
      UserError: there is no image.
    """
    names = sorted({folder.name for root in roots for folder in _folders(root)})
    numbers = {name: number for number, name in enumerate(names)}
    paths, labels = [], []
    for root in roots:
        for folder in _folders(root):
            found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
            paths += found
            labels += [numbers[folder.name]] * len(found)
    if not paths:
        raise UserError(
            f"{' and '.join(map(str, roots))} holds no CLASS/IMAGE of the kinds "
            f"{', '.join(sorted(_SUFFIXES))}: name the directory that holds a folder per class."
        )
    return Listing(paths, labels, len(names))


def domain_tree(root: Path, domains: Sequence[str] | None = None) -> Listing:
    """Lists the images in `ROOT/DOMAIN/CLASS/`, owned by their domains.

    Args:
      root: the directory.
      domains: names of the folders; None for all there are, in the order of their names.

    Raises:
      UserError: there is no image, or a domain is missing.
    """
    folders = _folders(root) if domains is None else [root / domain for domain in domains]
    missing = [folder.name for folder in folders if not folder.is_dir()]
    if missing:
        raise UserError(f"{root} lacks the folders {', '.join(missing)}: unpack them there.")
    together = class_tree(folders)
    numbers = {folder: number for number, folder in enumerate(folders)}
    depth = len(root.parts) + 1
    owners = [numbers[Path(*path.parts[:depth])] for path in together.paths]
    return together._replace(owners=owners)


def load_listing(name: str, listing: Listing, side: int) -> Examples:
    """Returns listed images as squares of one size, in three colours.

    Args:
      name: how reports call the data set.
      listing: which files.
      side: of the squares; images are shrunk or stretched to it.

    Returns:
      Examples with inputs `[n, side, side, 3]` uint8.

    Raises:
      UserError: a file is absent or no image.
    """
    checks.whole(f"data.options.{name}.side", side, 1)
    inputs = np.empty((len(listing.paths), side, side, 3), np.uint8)
    for row, path in zip(inputs, listing.paths, strict=True):
        try:
            with Image.open(path) as image:
                row[:] = squared(image, side)
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: unpack the data set again.") from error
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"{path} is truncated, damaged or no image: {files.FETCH_AGAIN}."
            ) from error
    return Examples(
        name=name,
        inputs=inputs,
        targets=np.array(listing.labels, np.int32),
        num_classes=listing.num_classes,
        mean=127.5,
        std=127.5,
        owners=None if listing.owners is None else np.array(listing.owners, np.int32),
    )


def squared(image: Image.Image, side: int) -> np.ndarray:
    """Returns an image as `[side, side, 3]` uint8, averaged over what each pixel covers."""
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
