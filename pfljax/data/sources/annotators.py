"""Texts that several people rate, each in their own way; the annotators are the clients.

The items are features of the texts by a frozen encoder, `[num_items, d]`, which come with the
files; an example is the rating of an item by its owner. The ratings are in no order of time.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pfljax.data import checks, validate_arrays
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.errors import UserError

FEATURES = ("minilm", "wordllama")
_FOLDERS = {
    "md_agreement": "md_agreement",
    "popquorn": "popquorn_offensiveness",
    "studemo": "studemo",
}
# Features have the norm 1, so that their entries are about 0.05.
_STD_OF_FEATURES = 0.25
_OFFENSIVE = ("not offensive", "offensive")
_RATINGS = ("1", "2", "3", "4", "5")
# The names of the codes of POPQUORN's annotators, in the order of the codes.
_GROUPS = {
    "gender": ("woman", "man", "non-binary"),
    "race": (
        *("White", "Black", "Asian", "Hispanic or Latino", "Native American", "Arab American"),
    ),
    "age": (
        *("18-24", "25-29", "30-34", "35-39", "40-44", "45-49", "50-54", "54-59", "60-64", ">65"),
    ),
    "education": ("less than high school", "high school", "college", "graduate", "other"),
    "occupation": (
        *("employed", "self-employed", "unemployed", "retired", "student", "homemaker", "other"),
    ),
}
# The columns of StudEmo with their smallest and largest rating, in the order of the file.
_EMOTIONS = ("joy", "trust", "anticipation", "surprise", "fear", "sadness", "disgust", "anger")
_SCALES = {**dict.fromkeys(_EMOTIONS, (0, 3)), "valence": (-3, 3), "arousal": (0, 3)}


class _Ratings(NamedTuple):
    """The content of the files of a data set.

    Attributes:
      path: The file of the ratings.
      users: `[n]` int32, the annotator of each rating, from 0.
      items: `[n]` int32, the text of each rating, from 0.
      labels: `[n, ...]`, the ratings as stored.
      features: `[num_items, d]` float32, the features of the texts, of norm 1.
      num_users: Number of annotators.
      others: Further arrays of the file by name.
    """

    path: Path
    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    num_users: int
    others: dict[str, np.ndarray]


def load_md_agreement(data_dir: str = "", *, features: str = "minilm") -> Examples:
    """Returns ratings of tweets as offensive or not, by 819 annotators.

    Args:
      data_dir: A directory with `md_agreement.npz` and `features_FEATURES.npz`, or with a directory
        `md_agreement` of them.
      features: The encoder of the texts: 'minilm' (384 features) or 'wordllama' (256).

    Returns:
      Examples with inputs `[n]` int32, item numbers, and targets 1 for offensive; the items are
      `[num_items, d]` float32.

    Raises:
      UserError: The files are missing or damaged, or the option is invalid.

    References:
      Leonardelli, Menini, Palmero Aprosio, Guerini, Tonelli, "Agreeing to Disagree: Annotating
      Offensive Language Datasets with Annotators' Disagreement", 2021,
      https://doi.org/10.18653/v1/2021.emnlp-main.822.
    """
    found = _read("md_agreement", data_dir, features)
    targets = _whole(found, found.labels, "label", 0, 1)
    return _examples("md_agreement", found, targets, _OFFENSIVE)


def load_popquorn(
    data_dir: str = "", *, features: str = "minilm", labels: str = "offensive"
) -> Examples:
    """Returns ratings of how offensive comments are, by 262 annotators with known backgrounds.

    Args:
      data_dir: A directory with `popquorn_offensiveness.npz` and `features_FEATURES.npz`, or with a
        directory `popquorn_offensiveness` of them.
      features: The encoder of the texts: 'minilm' (384 features) or 'wordllama' (256).
      labels: 'offensive' for two classes, of which 1 is a rating above 1, or 'rating' for the five
        ratings as classes.

    Returns:
      Examples with inputs `[n]` int32, item numbers; the items are `[num_items, d]` float32. The
      groups of the annotators are `gender`, `race`, `age`, `education` and `occupation`.

    Raises:
      UserError: The files are missing or damaged, or an option is invalid.

    References:
      Pei, Jurgens, "When Do Annotator Demographics Matter? Measuring the Influence of Annotator
      Demographics with the POPQUORN Dataset", 2023, https://doi.org/10.18653/v1/2023.law-1.25.
    """
    checks.choice("data.options.popquorn.labels", labels, ("offensive", "rating"))
    found = _read("popquorn", data_dir, features, tuple(f"user_{name}" for name in _GROUPS))
    ratings = _whole(found, found.labels, "label", 1, len(_RATINGS))
    targets, names = ratings - 1, _RATINGS
    if labels == "offensive":
        targets, names = (ratings > 1).astype(np.int32), _OFFENSIVE
    groups = {}
    for name, of_codes in _GROUPS.items():
        codes = _whole(found, found.others[f"user_{name}"], f"user_{name}", 0, len(of_codes) - 1)
        if len(codes) != found.num_users:
            raise _contradiction(found, f"{len(codes)} values of user_{name}")
        groups[name] = np.array(of_codes)[codes]
    return _examples("popquorn", found, targets, names, groups)


def load_studemo(
    data_dir: str = "", *, features: str = "wordllama", labels: str = "joy"
) -> Examples:
    """Returns the emotions that 25 annotators read in reviews.

    Args:
      data_dir: A directory with `studemo.npz` and `features_FEATURES.npz`, or with a directory
        `studemo` of them.
      features: The encoder of the texts: 'wordllama' (256 features) or 'minilm' (384).
      labels: The rated scale: one of eight emotions, such as 'joy' or 'anger', with two classes, of
        which 1 is a rating above 0; or 'valence' with seven classes and 'arousal' with four.

    Returns:
      Examples with inputs `[n]` int32, item numbers; the items are `[num_items, d]` float32.

    Raises:
      UserError: The files are missing or damaged, or an option is invalid.

    References:
      Ngo, Candri, Ferdinan, Kocon, Korczynski, "StudEmo: A Non-aggregated Review Dataset for
      Personalized Emotion Recognition", 2022, https://aclanthology.org/2022.nlperspectives-1.7.
    """
    checks.choice("data.options.studemo.labels", labels, _SCALES)
    found = _read("studemo", data_dir, features)
    if found.labels.ndim != 2 or found.labels.shape[1] != len(_SCALES):
        raise _contradiction(found, f"labels of shape {found.labels.shape}")
    low, high = _SCALES[labels]
    column = found.labels[:, list(_SCALES).index(labels)]
    ratings = _whole(found, column, f"rating of {labels}", low, high)
    if labels in _EMOTIONS:
        return _examples("studemo", found, (ratings > 0).astype(np.int32), (f"no {labels}", labels))
    return _examples("studemo", found, ratings - low, tuple(map(str, range(low, high + 1))))


def read_texts(name: str, data_dir: str) -> list[str]:
    """Returns the texts of a data set in the order of their item numbers.

    Args:
      name: 'md_agreement', 'popquorn' or 'studemo'.
      data_dir: As for the loader of the data set.

    Raises:
      UserError: The file is missing or damaged.
    """
    folder = checks.choice("name", name, _FOLDERS) and _FOLDERS[name]
    searched = files.directories(data_dir, (folder,))
    paths = files.find(searched, [f"{folder}.npz"])
    if paths is None:
        raise files.absent(name, searched, f"put {folder}.npz there")
    (path,) = paths
    content, offsets = files.read_npz(path, "text", "text_offsets")
    offsets = validate_arrays.whole(
        path, offsets, "text_offsets", least=0, remedy=files.FETCH_AGAIN
    )
    content = validate_arrays.pixels(path, content, remedy=files.FETCH_AGAIN).tobytes()
    if offsets.ndim != 1 or np.any(np.diff(offsets) < 0) or offsets[-1:].tolist() != [len(content)]:
        raise UserError(f"{path} has text_offsets that do not match its text: {files.FETCH_AGAIN}.")
    pairs = zip(offsets[:-1], offsets[1:], strict=True)
    return [files.decode(path, content[start:end]) for start, end in pairs]


def _read(name: str, data_dir: str, features: str, others: tuple[str, ...] = ()) -> _Ratings:
    """Reads and checks the two files of a data set.

    Args:
      name: The name of the data set.
      data_dir: The user's directory.
      features: One of `FEATURES`.
      others: The names of further arrays in the file of the ratings.
    """
    checks.choice(f"data.options.{name}.features", features, FEATURES)
    folder = _FOLDERS[name]
    names = [f"{folder}.npz", f"features_{features}.npz"]
    searched = files.directories(data_dir, (folder,))
    paths = files.find(searched, names)
    if paths is None:
        raise files.absent(name, searched, f"put {' and '.join(names)} there")
    ratings_path, features_path = paths
    keys = ("user", "item", "label", "user_offsets", *others)
    users, items, labels, user_offsets, *more = files.read_npz(ratings_path, *keys)
    codes, scale = files.read_npz(features_path, "text", "text_scale")
    for array in (codes, scale):
        validate_arrays.finite(features_path, files.numbers(features_path, array, "features"))
    if codes.ndim != 2 or scale.shape != codes.shape[:1] or not codes.size:
        raise UserError(
            f"{features_path} has features of shape {codes.shape} with scales of shape "
            f"{scale.shape} instead of a row and a number for each text: {files.FETCH_AGAIN}."
        )
    found = _Ratings(
        path=ratings_path,
        users=users,
        items=items,
        labels=labels,
        features=(codes * scale[:, np.newaxis]).astype(np.float32),
        num_users=user_offsets.size - 1,
        others=dict(zip(others, more, strict=True)),
    )
    if len({len(users), len(items), len(labels)}) > 1 or users.ndim != 1 or items.ndim != 1:
        raise _contradiction(found, f"{len(users)} users, {len(items)} items, {len(labels)} labels")
    return found._replace(
        users=_whole(found, users, "user", 0, found.num_users - 1),
        items=_whole(found, items, "item", 0, len(codes) - 1),
    )


def _whole(found: _Ratings, values: np.ndarray, what: str, least: int, most: int) -> np.ndarray:
    """Returns `[n]` numbers as int32, after checking that they are whole and in range."""
    if values.ndim != 1:
        raise _contradiction(found, f"values of {what} of shape {values.shape}")
    return validate_arrays.whole(
        found.path, values, what, least=least, most=most, remedy=files.FETCH_AGAIN
    )


def _contradiction(found: _Ratings, fault: str) -> UserError:
    return UserError(
        f"{found.path} has {fault}, which do not match its {len(found.users)} ratings by "
        f"{found.num_users} annotators: {files.FETCH_AGAIN}."
    )


def _examples(
    name: str,
    found: _Ratings,
    targets: np.ndarray,
    class_names: tuple[str, ...],
    groups: dict[str, np.ndarray] | None = None,
) -> Examples:
    return Examples(
        name=name,
        inputs=found.items,
        targets=targets,
        num_classes=len(class_names),
        std=_STD_OF_FEATURES,
        owners=found.users,
        class_names=class_names,
        items=found.features,
        owner_names=tuple(f"annotator {number}" for number in range(found.num_users)),
        owner_groups=groups,
    )
