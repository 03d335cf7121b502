"""Omniglot: characters of many alphabets, each drawn once by 20 people."""

from __future__ import annotations

import io
import re

import numpy as np

from pfljax.data import checks, reading
from pfljax.data.examples import Examples
from pfljax.data.sources import files, image_files
from pfljax.errors import UserError

# Any of the official archives; the small ones are parts of the background set.
_ARCHIVES = (
    "images_background.zip",
    "images_evaluation.zip",
    "images_background_small1.zip",
    "images_background_small2.zip",
)
_DIGITS = 6
_DRAWING = re.compile(r"([^/]+)/(character\d+)/\d+_(\d+)\.png$")


def load_omniglot(
    data_dir: str = "", *, owners: str = "drawer", labels: str = "alphabet", side: int = 28
) -> Examples:
    """Returns the drawings in the official archives found.

    Args:
      data_dir: A directory with one or more of `images_background.zip`, `images_evaluation.zip`,
        `images_background_small1.zip` and `images_background_small2.zip`, or with a directory
        `omniglot` of them. Drawings in two archives are used once.
      owners: `drawer` for the 20 people of every alphabet (the same index in two alphabets may be
        different people), or `alphabet`.
      labels: `alphabet`, or `character`; a drawer has one drawing of each character.
      side: The side length of the images, which are reduced from 105x105.

    Returns:
      Examples with inputs `[n, side, side, 1]` uint8, dark on white; alphabets, and characters in
      them, in the order of their names.

    Raises:
      UserError: The files are missing or damaged.

    References:
      Lake, Salakhutdinov, Tenenbaum, "Human-level Concept Learning through Probabilistic Program
      Induction", 2015, https://doi.org/10.1126/science.aab3050.
    """
    checks.choice("data.options.omniglot.owners", owners, ("drawer", "alphabet"))
    checks.choice("data.options.omniglot.labels", labels, ("alphabet", "character"))
    checks.whole("data.options.omniglot.side", side, 1, image_files.LARGEST_SIDE)
    searched = files.directories(data_dir, ("omniglot",))
    there = [root / name for root in searched for name in _ARCHIVES if (root / name).is_file()]
    if not there:
        raise files.absent("omniglot", searched, f"put {_ARCHIVES[0]} or another of its zips there")
    drawings: dict[tuple[str, str, int], np.ndarray] = {}
    for path in there:
        content = reading.members(path, lambda name: name.endswith(".png"), files.FETCH_AGAIN)
        for name, drawing in content:
            if found := _DRAWING.search(name):
                alphabet, character, drawer = found.groups()
                if len(drawer) > _DIGITS:
                    raise UserError(
                        f"{path} has {name[:80]}, whose number is not that of a drawer: "
                        f"{files.FETCH_AGAIN}."
                    )
                drawings[alphabet, character, int(drawer)] = image_files.read_image(
                    f"{path}, in {name},", io.BytesIO(drawing), side, grey=True
                )
    if not drawings:
        raise UserError(f"{there[0]} has no ALPHABET/characterNN/NNNN_NN.png: {files.FETCH_AGAIN}.")
    keys = sorted(drawings)
    alphabets = _numbered([alphabet for alphabet, _, _ in keys])
    characters = _numbered([(alphabet, character) for alphabet, character, _ in keys])
    drawers = np.array([drawer for _, _, drawer in keys], np.int32)
    targets = alphabets if labels == "alphabet" else characters
    names = sorted({alphabet for alphabet, _, _ in keys})
    if owners == "drawer":
        names = [f"drawer {number}" for number in range(drawers.max() + 1)]
    return Examples(
        name="omniglot",
        inputs=np.stack([drawings[key] for key in keys])[..., np.newaxis],
        targets=targets,
        num_classes=int(targets.max()) + 1,
        mean=127.5,
        std=127.5,
        owners=drawers if owners == "drawer" else alphabets,
        owner_names=tuple(names),
    )


def _numbered(names: list) -> np.ndarray:
    """Numbers names in sorted order: `[n]` int32."""
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], np.int32)
