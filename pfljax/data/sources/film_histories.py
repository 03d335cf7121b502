"""Films with genres, tags and titles, and the films that a user rated before: recommendation.

An item is a row of ids `[2 + columns]`: the film, from 1; the user's rating in half stars, 0 for a
film that is not rated by then; attributes of the film, 0 for none. The attributes 1 to `C` are
tags, genres first, and those above are hashed words of titles.
"""

from __future__ import annotations

import collections
import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pfljax.data.sources import files
from pfljax.data.sources.hashed_words import hash_words
from pfljax.errors import UserError

# Ratings are from half a star to five stars.
_LEVELS = 10
# Most tags and most words of a title that an item has: 8 tags cover the genres of all but six films
# of ml-latest-small, and 5 words more than half of the titles.
_TAGS, _WORDS = 8, 5
_NO_GENRE = "(no genres listed)"


class Film(NamedTuple):
    """A film of MovieLens.

    Attributes:
      title: The title, with the year in parentheses.
      genres: The names of the genres.
    """

    title: str
    genres: tuple[str, ...]


class Tag(NamedTuple):
    """A tag that a user has written for a film.

    Attributes:
      user: MovieLens' id of the user.
      film: MovieLens' id of the film.
      text: The tag in lower case.
    """

    user: int
    film: int
    text: str


class Described(NamedTuple):
    """The attributes of films.

    Attributes:
      attributes: `[F, columns]` int32, tags and then words of each film, 0 for none.
      tags: The `C` names of the tags.
      vocabulary: The sizes of the id spaces of an item's columns.
    """

    attributes: np.ndarray
    tags: tuple[str, ...]
    vocabulary: tuple[int, ...]


def read_films(path: Path, text: str) -> dict[int, Film]:
    """Reads `movies.csv`.

    Args:
      path: The file, for error messages.
      text: The table.

    Returns:
      The films by MovieLens' ids.

    Raises:
      UserError: The table has other columns, or a row is damaged.
    """
    films = {}
    for film, title, genres in _rows(path, text, ("movieId", "title", "genres"), (0,)):
        names = tuple(name for name in genres.split("|") if name and name != _NO_GENRE)
        films[film] = Film(title, names)
    return films


def read_tags(path: Path, text: str) -> list[Tag]:
    """Reads `tags.csv`.

    Args:
      path: The file, for error messages.
      text: The table.

    Raises:
      UserError: The table has other columns, or a row is damaged.
    """
    columns = ("userId", "movieId", "tag", "timestamp")
    rows = _rows(path, text, columns, (0, 1))
    return [Tag(user, film, tag.strip().lower()) for user, film, tag, _ in rows]


def _rows(
    path: Path, text: str, columns: tuple[str, ...], whole: tuple[int, ...]
) -> list[list[int | str]]:
    """Returns the rows of a CSV table, some columns as whole numbers."""
    rows: list[list[int | str]] = []
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        if tuple(next(reader, ())) != columns:
            raise ValueError("header")
        for row in reader:
            if len(row) != len(columns):
                raise ValueError("columns")
            cells: list[int | str] = list(row)
            for column in whole:
                cells[column] = files.whole_number(row[column])
            rows.append(cells)
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{path} is damaged at row {len(rows) + 1}, or not a table of the columns "
            f"{','.join(columns)}: {files.FETCH_AGAIN}."
        ) from error
    return rows


def describe(
    films: Mapping[int, Film],
    written: list[Tag],
    user_ids: np.ndarray,
    film_ids: np.ndarray,
    pairs: np.ndarray,
    num_tags: int,
    words: int,
) -> Described:
    """Returns the attributes of the films that are rated.

    Args:
      films: The films by MovieLens' ids.
      written: The tags of all users.
      user_ids: MovieLens' ids of the users, ascending.
      film_ids: `[F]`, MovieLens' ids of the rated films, ascending.
      pairs: `[n, 2]` int32, indices of user and film, by user; each user's in order of time.
      num_tags: Number of the most frequent tags that count, by films and then by name.
      words: Number of hashed words.

    Raises:
      UserError: A rated film is not in `films`.
    """
    # A tag for one of the last two films of a user would say that the user has seen it, which is
    # what validation and test ask.
    users, rated = pairs.T
    is_held = np.ones(len(pairs), bool)
    is_held[:-2] = users[2:] != users[:-2]
    held = set(zip(user_ids[users[is_held]], film_ids[rated[is_held]], strict=True))
    of_films = collections.defaultdict(set)
    for tag in written:
        if (tag.user, tag.film) not in held:
            of_films[tag.film].add(tag.text)
    counts = collections.Counter(text for texts in of_films.values() for text in texts)
    frequent = sorted(counts, key=lambda text: (-counts[text], text))[:num_tags]
    genres = sorted({genre for film in films.values() for genre in film.genres})
    tags = (*(f"genre: {name}" for name in genres), *frequent)
    genre_ids = {name: number for number, name in enumerate(genres, 1)}
    tag_ids = {name: number for number, name in enumerate(frequent, 1 + len(genres))}
    attributes = np.zeros((len(film_ids), _TAGS + _WORDS), np.int32)
    for row, number in zip(attributes, film_ids, strict=True):
        film = films.get(int(number))
        if film is None:
            raise UserError(
                f"movielens has ratings of the film {number:g}, which movies.csv lacks: put all "
                "files of one release there."
            )
        own = [genre_ids[name] for name in film.genres]
        own += sorted(tag_ids[text] for text in of_films[int(number)] if text in tag_ids)
        # The year, which is the last word of a title, is among the words.
        of_title = list(dict.fromkeys(hash_words(film.title, words)[::-1]))
        own, of_title = own[:_TAGS], of_title[:_WORDS]
        row[: len(own)] = own
        row[_TAGS : _TAGS + len(of_title)] = 1 + len(tags) + np.array(of_title, np.int32)
    columns = attributes.shape[1]
    ids = (1 + len(film_ids), 1 + _LEVELS, *(1 + len(tags) + words,) * columns)
    return Described(attributes, tags, ids)


def items(attributes: np.ndarray) -> np.ndarray:
    """Returns `[1 + (1 + 10) F, 2 + columns]` int32: none, all films, and all with each rating.

    Args:
      attributes: `[F, columns]` int32.
    """
    count, columns = attributes.shape
    found = np.zeros((1 + (1 + _LEVELS) * count, 2 + columns), np.int32)
    by_level = found[1:].reshape(1 + _LEVELS, count, 2 + columns)
    by_level[:, :, 0] = 1 + np.arange(count)
    by_level[:, :, 1] = np.arange(1 + _LEVELS)[:, None]
    by_level[:, :, 2:] = attributes
    return found


def item_numbers(
    choices: np.ndarray, pairs: np.ndarray, ratings: np.ndarray, history: int
) -> np.ndarray:
    """Returns `[n, K + history]` int32, the rows of `items` of each example.

    The `K` films to choose from come first, and then the films that the user has rated before, the
    last one at the end, and 0 before the first one.

    Args:
      choices: `[n, K]` int32, indices of films, the chosen one first.
      pairs: `[n, 2]` int32, indices of user and film, by user; each user's in order of time.
      ratings: `[n]`, in stars.
      history: Number of films rated before.
    """
    count = int(pairs[:, 1].max()) + 1
    levels = np.clip(np.ceil(2 * ratings), 1, _LEVELS).astype(np.int32)
    rated = 1 + levels * count + pairs[:, 1]
    begins = np.searchsorted(pairs[:, 0], pairs[:, 0])  # of the user's ratings
    before = np.arange(len(pairs))[:, None] - np.arange(history, 0, -1)
    own = before >= begins[:, None]
    return np.concatenate([1 + choices, np.where(own, rated[before], 0)], axis=1).astype(np.int32)
