"""The published JSON files of PEFT-U: texts that users label, in training, validation and test.

`read_peft_u` returns all ratings with the split of the file. `load_peft_u` makes a data set of one
task: a user is a client, a text that several users label is one item, and inputs are counts of
hashed words. The published splits are not kept: `user_data_leaked.json` splits the ratings of each
user, as `data.split=stratified` does, and `user_data_no_leak.json` the texts, as `by_item` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pfljax.data import checks, reading
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.hashed_words import count_hashed_words
from pfljax.errors import UserError

_AGAIN = files.FETCH_AGAIN
_FILES = ("user_data_leaked.json", "user_data_no_leak.json")
_SPLITS = ("train", "val", "test")


class Rating(NamedTuple):
    """A text with the labels that a user gives it.

    Attributes:
      user: The identity of the user.
      split: 'train', 'val' or 'test', as published.
      text_id: The identity of the text, which users share.
      text: The text.
      labels: The labels, at least one, in the order of the file.
    """

    user: str
    split: str
    text_id: str
    text: str
    labels: tuple[str, ...]


def read_peft_u(path: str | Path) -> list[Rating]:
    """Reads the ratings of a task of PEFT-U, those of a user in consecutive entries.

    Args:
      path: `user_data_leaked.json` or `user_data_no_leak.json` of a task:
        `{user: {'train' | 'val' | 'test': {text id: {'text': str, 'label': [str, ...]}}}}`, with
        other fields that are not read.

    Raises:
      UserError: The file is missing or damaged, has another form, or rates a text twice by a user.

    References:
      Clarke, Heng, Tang, Mars, "PEFT-U: Parameter-Efficient Fine-Tuning for User Personalization",
      2024, https://arxiv.org/abs/2407.18078.
    """
    path = Path(path).expanduser()
    try:
        content = reading.parse_json(files.read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): {_AGAIN}.") from error
    found: list[Rating] = []
    for user, splits in _mapping(content, f"{path} has no users").items():
        of_user = _mapping(splits, f"{path} has no splits of user {user!r}")
        if unknown := sorted(set(of_user) - set(_SPLITS)):
            raise UserError(f"{path} has the split {unknown[0]!r} of user {user!r}: {_AGAIN}.")
        own: dict[str, Rating] = {}
        for split in _SPLITS:
            entries = _mapping(of_user.get(split, {}), f"{path} has no {split} of user {user!r}")
            for text_id, entry in entries.items():
                if text_id in own:
                    fault = f"the text {text_id!r} twice of user {user!r}"
                    raise UserError(f"{path} has {fault}: {_AGAIN}.")
                own[text_id] = Rating(user, split, text_id, *_contents(path, user, text_id, entry))
        found += own.values()
    if not found:
        raise UserError(f"{path} has no ratings: {_AGAIN}.")
    return found


def load_peft_u(data_dir: str = "", *, task: str = "", words: int = 1024) -> Examples:
    """Returns the ratings of a task of PEFT-U; several labels of a text are one class of their own.

    Args:
      data_dir: A directory with `user_data_leaked.json` or `user_data_no_leak.json`, which have the
        same ratings, or with a directory of the name of the task that has one of them.
      task: The name of that directory, such as 'studemo'; '' for the directory itself.
      words: Number of hashed words.

    Returns:
      Examples with inputs `[n]` int32, item numbers; the items are `[num_items, words]` float32,
      one for each text, and the classes are the labels, joined by ', ' where there are several.

    Raises:
      UserError: The file is missing or damaged, has two texts of one identity, or an option is
        invalid.
    """
    checks.whole("data.options.peft_u.words", words, 2, 2**20)
    searched = files.directories(data_dir, (task,) if task else ())
    paths = next((found for name in _FILES if (found := files.find(searched, [name]))), None)
    if paths is None:
        raise files.absent("peft_u", searched, f"put {_FILES[0]} of a task there")
    ratings = read_peft_u(paths[0])
    texts: dict[str, str] = {}
    for rating in ratings:
        if texts.setdefault(rating.text_id, rating.text) != rating.text:
            raise UserError(f"{paths[0]} has two texts {rating.text_id!r}: {_AGAIN}.")
    users = list(dict.fromkeys(rating.user for rating in ratings))
    labels = [", ".join(rating.labels) for rating in ratings]
    classes = sorted(set(labels))
    number_of = {
        kind: {name: n for n, name in enumerate(names)}
        for kind, names in (("item", texts), ("user", users), ("class", classes))
    }
    return Examples(
        name="peft_u",
        inputs=np.array([number_of["item"][rating.text_id] for rating in ratings], np.int32),
        targets=np.array([number_of["class"][label] for label in labels], np.int32),
        num_classes=len(classes),
        owners=np.array([number_of["user"][rating.user] for rating in ratings], np.int32),
        items=count_hashed_words(list(texts.values()), words),
        class_names=tuple(classes),
        owner_names=tuple(users),
    )


def _mapping(found: Any, fault: str) -> Mapping[str, Any]:
    """Returns a JSON object."""
    if not isinstance(found, dict):
        raise UserError(f"{fault}: {_AGAIN}.")
    return found


def _contents(path: Path, user: str, text_id: str, entry: Any) -> tuple[str, tuple[str, ...]]:
    """Returns the text and the labels of an entry."""
    text = entry.get("text") if isinstance(entry, dict) else None
    labels = entry.get("label") if isinstance(entry, dict) else None
    if not isinstance(text, str) or not isinstance(labels, list) or not labels:
        fault = "no text, or no list of labels"
        raise UserError(f"{path} has {fault} in {text_id!r} of user {user!r}: {_AGAIN}.")
    if not all(isinstance(label, str) for label in labels):
        raise UserError(f"{path} has a label that is no text in {text_id!r}: {_AGAIN}.")
    return text, tuple(labels)
