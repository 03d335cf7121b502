"""Data sets that are directories or lists of image files of any size."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from pfljax.data import checks, reading
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.errors import UserError

LARGEST_SIDE = 4096
_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".webp"),
    *(".tif", ".tiff", ".gif", ".jp2", ".j2k", ".tga"),
}
# Detected by content, not by name: some of Pillow's other formats would start programs.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP", "TIFF", "GIF", "JPEG2000", "TGA")
# Image formats without a media type on some systems, and formats that Pillow does not read.
_OTHER_KINDS = {
    *(".heic", ".heif", ".avif", ".jxl", ".svg", ".psd", ".exr", ".hdr", ".dcm", ".raw", ".dng"),
    *(".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"),
}
# The first bytes of images without a suffix: PNG, JPEG, GIF, TIFF.
_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")
# Directories of these names are parts of a data set if they contain only directories of classes.
_PARTS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}
_DEEP_GREY = 257  # 65535 / 255: the factor from 8-bit to 16-bit pixels


class Listing(NamedTuple):
    """A list of image files with their labels and owners.

    Attributes:
      paths: The `n` files.
      labels: `n` integers in `[0, num_classes)`.
      num_classes: `C`.
      owners: `n` integers, the natural client of each image; None if there are none.
      class_names: The `C` names of the classes; empty if they are numbers.
    """

    paths: list[Path]
    labels: list[int]
    num_classes: int
    owners: list[int] | None = None
    class_names: tuple[str, ...] = ()


def class_tree(roots: Sequence[Path]) -> Listing:
    """Lists the images in `ROOT/CLASS/`, or anywhere below, for each root in turn.

    Hidden directories and directories without an image are not classes. A root that contains only
    parts, such as `train` and `test`, each with directories of classes, is the union of its parts.

    Args:
      roots: The directories, such as one for training and one for testing; a class has the same
        name in each, and classes are numbered in the order of their names.

    Raises:
      UserError: There is no image, there are parts beside classes, or a file is an image of an
        unsupported format, or not a regular file.
    """
    found = {
        folder: images
        for root in roots
        for part in _parts(root)
        for folder in _folders(part)
        if (images := _images(folder))
    }
    names = sorted({folder.name for folder in found})
    numbers = {name: number for number, name in enumerate(names)}
    if not found:
        raise UserError(
            f"{' and '.join(map(str, roots))} has no CLASS/IMAGE of the formats "
            f"{', '.join(sorted(_SUFFIXES))}: pass a directory with one directory per class."
        )
    paths = [path for images in found.values() for path in images]
    labels = [numbers[folder.name] for folder, images in found.items() for _ in images]
    return Listing(paths, labels, len(names), class_names=tuple(names))


def domain_tree(root: Path, domains: Sequence[str] | None = None) -> Listing:
    """Lists the images in `ROOT/DOMAIN/CLASS/`, owned by their domains.

    Args:
      root: The directory.
      domains: The names of the domains' directories; None for all, in the order of their names.

    Raises:
      UserError: There is no image, or a domain is missing.
    """
    folders = _folders(root) if domains is None else [root / domain for domain in domains]
    missing = [folder.name for folder in folders if not folder.is_dir()]
    if missing:
        raise UserError(f"{root} lacks the directories {', '.join(missing)}: unpack them there.")
    listing = class_tree(folders)
    numbers = {folder: number for number, folder in enumerate(folders)}
    depth = len(root.parts) + 1
    owners = [numbers[Path(*path.parts[:depth])] for path in listing.paths]
    return listing._replace(owners=owners)


def load_listing(name: str, listing: Listing, side: int) -> Examples:
    """Returns listed images as squares of one size, with three channels.

    Args:
      name: The name of the data set in reports.
      listing: The image files.
      side: The side length of the squares; images are resized to it.

    Returns:
      Examples with inputs `[n, side, side, 3]` uint8.

    Raises:
      UserError: A file is missing or not an image.
    """
    checks.whole(f"data.options.{name}.side", side, 1, LARGEST_SIDE)
    needed = len(listing.paths) * side * side * 3
    if needed > _memory():
        raise UserError(
            f"{len(listing.paths)} images of {side}x{side} pixels need {needed / 1e9:,.1f} GB, "
            f"more than this machine's memory: use a smaller data.options.{name}.side."
        )
    inputs = np.empty((len(listing.paths), side, side, 3), np.uint8)
    for row, path in zip(inputs, listing.paths, strict=True):
        try:
            with reading.open_regular(path) as file:
                row[:] = read_image(path, file, side)
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: unpack the data set again.") from error
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror or error}): {files.FETCH_AGAIN}."
            ) from error
    return Examples(
        name=name,
        inputs=inputs,
        targets=np.array(listing.labels, np.int32),
        num_classes=listing.num_classes,
        mean=127.5,
        std=127.5,
        owners=None if listing.owners is None else np.array(listing.owners, np.int32),
        class_names=listing.class_names,
    )


def read_image(where: Path | str, file: BinaryIO, side: int, *, grey: bool = False) -> np.ndarray:
    """Returns the first image in a file, resized to a square.

    Args:
      where: The file, for error messages.
      file: The content of the file.
      side: The side length of the square.
      grey: Whether to return grey values `[side, side]` instead of `[side, side, 3]`.

    Raises:
      UserError: The file is truncated, damaged, not an image, or implausibly large.
    """
    try:
        with Image.open(file, formats=_FORMATS) as image:
            image = _eight_bits(where, image)
            if grey:
                size = (side, side)
                return np.asarray(image.convert("L").resize(size, Image.Resampling.BOX))
            return squared(image, side)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{where} claims an implausible number of pixels ({str(error).split(',')[0]}): "
            "remove it, or reduce its size."
        ) from error
    except MemoryError as error:
        raise reading.too_large(where) from error
    except Exception as error:  # Damaged images fail in many ways.
        raise UserError(
            f"{where} is truncated, damaged or not an image: {files.FETCH_AGAIN}."
        ) from error


def squared(image: Image.Image, side: int) -> np.ndarray:
    """Returns an image as `[side, side, 3]` uint8, averaged over the area of each pixel."""
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))


def _eight_bits(where: Path | str, image: Image.Image) -> Image.Image:
    """Returns an image with 8 bits per channel; Pillow itself would clip 16 bits at 255."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise UserError(
            f"{where} has pixels from {values.min():g} to {values.max():g} (mode {image.mode}), "
            "which do not define white: save it with 8 or 16 bits."
        )
    return Image.fromarray(np.rint(values / _DEEP_GREY).astype(np.uint8))


def _memory() -> float:
    """Returns the memory of this machine in bytes; infinite if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _folders(root: Path) -> list[Path]:
    """Returns the directories in a directory in the order of their names, without hidden ones."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not _hidden(path.name))


def _parts(root: Path) -> list[Path]:
    """Returns the parts of a root, such as train and test, or the root itself if it has none.

    Raises:
      UserError: There are directories of classes beside the parts.
    """
    folders = _folders(root)
    parts = [
        folder
        for folder in folders
        if folder.name.lower() in _PARTS and not _images(folder, deeply=False) and _images(folder)
    ]
    others = [folder for folder in folders if parts and folder not in parts and _images(folder)]
    if others:
        raise UserError(
            f"{root} has {parts[0].name}, a directory of classes, beside {others[0].name}, which "
            "is not: pass a directory of classes, or of parts such as train and test."
        )
    return parts or [root]


def _images(folder: Path, deeply: bool = True) -> list[Path]:
    """Returns the image files in a directory, or anywhere below, in the order of their names.

    Raises:
      OSError: A directory cannot be read.
      UserError: A file is an image of an unsupported format, or not a regular file.
    """
    images = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if deeply and not _hidden(name)]
        for name in names:
            if not _hidden(name) and _is_image(path := Path(parent, name)):
                images.append(path)
    return sorted(images)


def _is_image(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in _SUFFIXES:
        if not path.is_file():
            raise UserError(
                f"{path} is not a regular file, but has the name of an image: remove it."
            )
        return True
    if not suffix and path.is_file():
        with path.open("rb") as file:
            return file.read(len(_STARTS[0])).startswith(_STARTS)
    media = mimetypes.guess_type(path.name)[0] or ""
    if suffix in _OTHER_KINDS or media.startswith("image/"):
        raise UserError(
            f"{path} is an image of an unsupported format: convert it to PNG, or remove it."
        )
    return False


def _hidden(name: str) -> bool:
    # macOS adds a directory of the second name to its zip files.
    return name.startswith(".") or name == "__MACOSX"


def _raise(error: OSError) -> None:
    raise error
