"""AG News and Sogou News: texts as token ids, with their topics."""

from __future__ import annotations

import collections
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pfljax.data import checks, validate_arrays
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.errors import UserError

PADDING, UNKNOWN = 0, 1
_SPECIAL = 2  # words are numbered from here on
_PARTS = ("train", "test")
# Words, numbers and punctuation except colons, semicolons and double quotes.
_TOKEN = re.compile(r"[.,()!?']|[^\s.,()!?';:\"]+")
_FIELD_LIMIT = 10_000_000


def load_ag_news(data_dir: str = "", *, vocabulary: int = 32000, length: int = 200) -> Examples:
    """Returns AG News' 120,000 training texts followed by its 7,600 test texts, in 4 classes.

    Args:
      data_dir: A directory with `train.csv` and `test.csv` as distributed, or `PART_tokens.npy`
        (the concatenated ids of all texts, from 1 in order of frequency), `PART_lengths.npy` and
        `PART_labels.npy` for `train` and `test` (plain or compressed as .xz), or with a directory
        `ag_news` of them.
      vocabulary: Number of ids, for padding (0), unknown words (1) and the most frequent words.
      length: Number of tokens of an example, `T`; longer texts are truncated, shorter ones padded
        at the end.

    Returns:
      Examples with inputs `[n, T]` int32.

    Raises:
      UserError: The files are missing or damaged.

    References:
      Zhang, Zhao, LeCun, "Character-level Convolutional Networks for Text Classification", 2015,
      https://arxiv.org/abs/1509.01626.
    """
    return _load("ag_news", ("ag_news", "ag_news_csv"), 4, data_dir, vocabulary, length)


def load_sogou_news(data_dir: str = "", *, vocabulary: int = 32000, length: int = 200) -> Examples:
    """Returns Sogou News' 450,000 training texts, then its 60,000 test texts, in 5 classes.

    Args:
      data_dir: As for `load_ag_news`, with a directory `sogou_news`.
      vocabulary: Number of ids, as for `load_ag_news`.
      length: Number of tokens of an example.

    Returns:
      Examples with inputs `[n, T]` int32.

    Raises:
      UserError: The files are missing or damaged.
    """
    return _load("sogou_news", ("sogou_news", "sogou_news_csv"), 5, data_dir, vocabulary, length)


def tokens(text: str) -> list[str]:
    """Returns the words and punctuation of a text in lower case.

    >>> tokens('Oil at $50: "too much" (again), he said.')
    ['oil', 'at', '$50', 'too', 'much', '(', 'again', ')', ',', 'he', 'said', '.']
    """
    return _TOKEN.findall(text.lower())


def _load(
    name: str, folders: Sequence[str], classes: int, data_dir: str, vocabulary: int, length: int
) -> Examples:
    checks.whole(f"data.options.{name}.vocabulary", vocabulary, _SPECIAL + 1)
    checks.whole(f"data.options.{name}.length", length, 1, 100_000)
    searched = files.directories(data_dir, folders)
    arrays = [f"{part}_{kind}.npy" for part in _PARTS for kind in ("tokens", "lengths", "labels")]
    if paths := files.find(searched, arrays):
        read = [_read_arrays(paths[start : start + 3], classes, vocabulary) for start in (0, 3)]
    elif paths := files.find(searched, [f"{part}.csv" for part in _PARTS]):
        parts = [_read_csv(path, classes) for path in paths]
        ids = _most_frequent(parts[0][0], vocabulary - _SPECIAL)
        read = [
            ([[ids.get(word, UNKNOWN) for word in words[:length]] for words in texts], labels)
            for texts, labels in parts
        ]
    else:
        raise files.absent(name, searched, "put train.csv and test.csv of the distribution there")
    texts = [text for part, _ in read for text in part]
    inputs = np.full((len(texts), length), PADDING, np.int32)
    for row, text in zip(inputs, texts, strict=True):
        row[: len(text)] = text[:length]
    labels = np.concatenate([labels for _, labels in read])
    return Examples(name, inputs, labels, classes, vocabulary=(vocabulary,))


def _read_csv(path: Path, classes: int) -> tuple[list[list[str]], np.ndarray]:
    """Reads rows with a class counted from 1, a title and a text."""
    csv.field_size_limit(_FIELD_LIMIT)
    texts, labels = [], []
    try:
        for row in csv.reader(io.StringIO(files.read_text(path)), strict=True):
            labels.append(files.whole_number(row[0]) - 1)
            texts.append(tokens(" ".join(row[1:]).replace("\\", " ")))
    except (ValueError, IndexError, csv.Error) as error:
        raise UserError(
            f"{path} is damaged at row {len(texts) + 1}, or not a csv of a class and texts: "
            f"{files.FETCH_AGAIN}."
        ) from error
    if not texts:
        raise UserError(f"{path} is empty: {files.FETCH_AGAIN}.")
    return texts, files.labels_below(path, np.array(labels), classes)


def _most_frequent(texts: list[list[str]], count: int) -> dict[str, int]:
    """Numbers the most frequent words of the training texts; ties keep their order."""
    frequencies = collections.Counter(word for words in texts for word in words)
    common = frequencies.most_common(count)
    return {word: number for number, (word, _) in enumerate(common, _SPECIAL)}


def _read_arrays(
    paths: list[Path], classes: int, vocabulary: int
) -> tuple[list[np.ndarray], np.ndarray]:
    words, lengths, labels = (files.read_array(path, (None,)) for path in paths)
    files.same_length(lengths=(paths[1], lengths), labels=(paths[2], labels))
    lengths = validate_arrays.whole(paths[1], lengths, "length", least=0, remedy=files.FETCH_AGAIN)
    lengths = lengths.astype(np.int64)
    if lengths.sum() != len(words) or words.min(initial=1) < 1:
        raise UserError(
            f"{paths[0]} has {len(words)} tokens from {words.min(initial=1)} on where "
            f"{paths[1]} claims {lengths.sum()} from 1 on: download both files again."
        )
    words = validate_arrays.whole(paths[0], words, "token", least=1, remedy=files.FETCH_AGAIN)
    ids = np.minimum(words, vocabulary) - 1 + _SPECIAL
    ids[ids >= vocabulary] = UNKNOWN
    texts = np.split(ids, np.cumsum(lengths)[:-1])
    return texts, files.labels_below(paths[2], labels, classes)
