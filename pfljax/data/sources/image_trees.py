"""Image data sets that come as a folder per class, perhaps below a folder per domain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.image_files import class_tree, domain_tree, load_listing
from pfljax.errors import UserError

_DOMAINNET = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


def load_image_classes(data_dir: str = "", *, side: int = 64) -> Examples:
    """Returns images of the user's own in `DIRECTORY/CLASS/`, or `DIRECTORY/train/CLASS/`.

    Parts such as `train`, `val` and `test`, each with the same classes, are read as one pool, which
    the partition and the splits then divide. Hidden folders and folders without an image are no
    classes. JPEG, PNG, TIFF, GIF, WebP, JPEG 2000, BMP, PNM and TGA are read, 16 bits as 8, and of
    several images in a file the first.

    Args:
      data_dir: the directory.
      side: to which all images are resized.

    Returns:
      Examples with inputs `[n, side, side, 3]` uint8.

    Raises:
      UserError: there is no image, or one is damaged.
    """
    root = _given(data_dir, "image_classes", "a folder per class")
    return load_listing("image_classes", class_tree([root]), side)


def load_image_domains(data_dir: str = "", *, side: int = 64) -> Examples:
    """Returns images of the user's own in `DIRECTORY/DOMAIN/CLASS/`; the domains are the clients.

    PACS, Office-Home, Office-31 and VLCS come in this form.

    Args:
      data_dir: the directory.
      side: to which all images are resized.

    Returns:
      Examples with inputs `[n, side, side, 3]` uint8.

    Raises:
      UserError: there is no image, or one is damaged.
    """
    root = _given(data_dir, "image_domains", "a folder per domain, with one per class in each")
    return load_listing("image_domains", domain_tree(root), side)


def load_tiny_imagenet(data_dir: str = "", *, side: int = 64) -> Examples:
    """Returns the 100,000 training images of Tiny ImageNet in 200 classes.

    Args:
      data_dir: holds `train` of the unpacked archive, or a folder `tiny-imagenet-200` that does.
      side: of the images, 64 as distributed.

    Returns:
      Examples with inputs `[100000, side, side, 3]` uint8.

    Raises:
      UserError: the files are absent or damaged.
    """
    folders = ("tiny-imagenet-200", "tiny_imagenet")
    return _load("tiny_imagenet", data_dir, folders, ("train",), "train", 200, side)


def load_country211(data_dir: str = "", *, side: int = 64) -> Examples:
    """Returns the 63,300 photographs of Country211 by the country they were taken in.

    Args:
      data_dir: holds `train`, `valid` and `test` of the unpacked archive, or a folder `country211`
        that does.
      side: to which all images are resized.

    Returns:
      Examples with inputs `[63300, side, side, 3]` uint8 in 211 classes.

    Raises:
      UserError: the files are absent or damaged.
    """
    parts = ("train", "valid", "test")
    return _load("country211", data_dir, ("country211",), parts, "train", 211, side)


def load_kvasir(data_dir: str = "", *, side: int = 64) -> Examples:
    """Returns the 8,000 endoscopic images of Kvasir v2 in 8 classes.

    Args:
      data_dir: holds the folders of the eight classes, or a folder `kvasir-dataset-v2` or `kvasir`
        that does.
      side: to which all images are resized.

    Returns:
      Examples with inputs `[8000, side, side, 3]` uint8.

    Raises:
      UserError: the files are absent or damaged.
    """
    folders = ("kvasir-dataset-v2", "kvasir")
    return _load("kvasir", data_dir, folders, ("",), "polyps", 8, side)


def load_domainnet(data_dir: str = "", *, side: int = 64) -> Examples:
    """Returns the 586,575 images of DomainNet in 345 classes; the six domains are the clients.

    Args:
      data_dir: holds `clipart`, `infograph`, `painting`, `quickdraw`, `real` and `sketch`, or a
        folder `domainnet` that does.
      side: to which all images are resized; at 64 they take 7 GB of memory.

    Returns:
      Examples with inputs `[n, side, side, 3]` uint8.

    Raises:
      UserError: the files are absent or damaged.
    """
    places = files.directories(data_dir, ("domainnet", "DomainNet"))
    root = next((place for place in places if (place / _DOMAINNET[0]).is_dir()), None)
    if root is None:
        raise files.absent("domainnet", places, f"unpack {', '.join(_DOMAINNET)} there")
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
    """Returns the union of some parts, each a folder per class."""
    places = files.directories(data_dir, folders)
    root = next((place for place in places if (place / known).is_dir()), None)
    if root is None:
        raise files.absent(name, places, f"unpack its archive there, with the folder {known}")
    missing = [part for part in parts if not (root / part).is_dir()]
    if missing:
        raise UserError(f"{root} lacks the folders {', '.join(missing)}: unpack them there.")
    listing = class_tree([root / part for part in parts])
    return load_listing(name, _of_classes(listing, root, classes), side)


def _of_classes(listing, root: Path, classes: int):
    if listing.num_classes != classes:
        raise UserError(
            f"{root} holds folders of {listing.num_classes} classes where {classes} are expected: "
            "unpack the whole data set there, and nothing else."
        )
    return listing


def _given(data_dir: str, name: str, what: str) -> Path:
    root = Path(data_dir).expanduser()
    if not data_dir or not root.is_dir():
        raise UserError(
            f"The data set {name} is a directory with {what}, and {data_dir!r} is none: name it in "
            "data.dir."
        )
    return root
