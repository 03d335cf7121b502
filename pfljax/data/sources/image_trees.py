"""Image data sets with a directory per class, in some cases inside a directory per domain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.image_files import class_tree, domain_tree, load_listing
from pfljax.errors import UserError

_DOMAINNET = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


def load_image_classes(data_dir: str = "", *, side: int = 64) -> Examples:
    """Returns the user's images in `DIRECTORY/CLASS/`, or `DIRECTORY/train/CLASS/`.

    Parts such as `train`, `val` and `test`, each with the same classes, are pooled, and then
    partitioned and split. Hidden directories and directories without an image are not classes. The
    formats JPEG, PNG, TIFF, GIF, WebP, JPEG 2000, BMP, PNM and TGA are read; 16 bits are reduced to
    8, and of several images in a file the first is used.

    Args:
      data_dir: The directory.
      side: The side length to which all images are resized.

    Returns:
      Examples with inputs `[n, side, side, 3]` uint8.

    Raises:
      UserError: There is no image, or one is damaged.
    """
    root = _given(data_dir, "image_classes", "a directory per class")
    return load_listing("image_classes", class_tree([root]), side)


def load_image_domains(data_dir: str = "", *, side: int = 64) -> Examples:
    """Returns the user's images in `DIRECTORY/DOMAIN/CLASS/`; the domains are the clients.

    PACS, Office-Home, Office-31 and VLCS are distributed in this format.

    Args:
      data_dir: The directory.
      side: The side length to which all images are resized.

    Returns:
      Examples with inputs `[n, side, side, 3]` uint8.

    Raises:
      UserError: There is no image, or one is damaged.
    """
    root = _given(data_dir, "image_domains", "a directory per domain, with one per class in each")
    return load_listing("image_domains", domain_tree(root), side)


def load_tiny_imagenet(data_dir: str = "", *, side: int = 64) -> Examples:
    """Returns the 100,000 training images of Tiny ImageNet in 200 classes.

    Args:
      data_dir: A directory with `train` of the unpacked archive, or with a directory
        `tiny-imagenet-200` of them.
      side: The side length of the images, 64 as distributed.

    Returns:
      Examples with inputs `[100000, side, side, 3]` uint8.

    Raises:
      UserError: The files are missing or damaged.
    """
    folders = ("tiny-imagenet-200", "tiny_imagenet")
    return _load("tiny_imagenet", data_dir, folders, ("train",), "train", 200, side)


def load_country211(data_dir: str = "", *, side: int = 64) -> Examples:
    """Returns the 63,300 photographs of Country211 with the country as label.

    Args:
      data_dir: A directory with `train`, `valid` and `test` of the unpacked archive, or with a
        directory `country211` of them.
      side: The side length to which all images are resized.

    Returns:
      Examples with inputs `[63300, side, side, 3]` uint8 in 211 classes.

    Raises:
      UserError: The files are missing or damaged.
    """
    parts = ("train", "valid", "test")
    return _load("country211", data_dir, ("country211",), parts, "train", 211, side)


def load_kvasir(data_dir: str = "", *, side: int = 64) -> Examples:
    """Returns the 8,000 endoscopic images of Kvasir v2 in 8 classes.

    Args:
      data_dir: A directory with those of the eight classes, or with a directory `kvasir-dataset-v2`
        or `kvasir` of them.
      side: The side length to which all images are resized.

    Returns:
      Examples with inputs `[8000, side, side, 3]` uint8.

    Raises:
      UserError: The files are missing or damaged.
    """
    folders = ("kvasir-dataset-v2", "kvasir")
    return _load("kvasir", data_dir, folders, ("",), "polyps", 8, side)


def load_domainnet(data_dir: str = "", *, side: int = 64) -> Examples:
    """Returns the 586,575 images of DomainNet in 345 classes; the six domains are the clients.

    Args:
      data_dir: A directory with `clipart`, `infograph`, `painting`, `quickdraw`, `real` and
        `sketch`, or with a directory `domainnet` of them.
      side: The side length to which all images are resized; at 64 they take 7 GB of memory.

    Returns:
      Examples with inputs `[n, side, side, 3]` uint8.

    Raises:
      UserError: The files are missing or damaged.
    """
    searched = files.directories(data_dir, ("domainnet", "DomainNet"))
    root = next((root for root in searched if (root / _DOMAINNET[0]).is_dir()), None)
    if root is None:
        raise files.absent("domainnet", searched, f"unpack {', '.join(_DOMAINNET)} there")
    listing = domain_tree(root, _DOMAINNET)
    return load_listing("domainnet", _of_classes(listing, root, 345), side)


def _load(
    name: str,
    data_dir: str,
    folders: Sequence[str],
    parts: Sequence[str],
    known: str,
    classes: int,
    side: int,
) -> Examples:
    """Returns the union of some parts, each with a directory per class."""
    searched = files.directories(data_dir, folders)
    root = next((root for root in searched if (root / known).is_dir()), None)
    if root is None:
        raise files.absent(name, searched, f"unpack its archive there, with the directory {known}")
    missing = [part for part in parts if not (root / part).is_dir()]
    if missing:
        raise UserError(f"{root} lacks the folders {', '.join(missing)}: unpack them there.")
    listing = class_tree([root / part for part in parts])
    return load_listing(name, _of_classes(listing, root, classes), side)


def _of_classes(listing, root: Path, classes: int):
    if listing.num_classes != classes:
        raise UserError(
            f"{root} has directories of {listing.num_classes} classes instead of {classes}: "
            "unpack the whole data set there, and nothing else."
        )
    return listing


def _given(data_dir: str, name: str, what: str) -> Path:
    root = Path(data_dir).expanduser()
    if not data_dir or not root.is_dir():
        raise UserError(
            f"The data set {name} is a directory with {what}, but {data_dir!r} is not one: set "
            "data.dir to it."
        )
    return root
