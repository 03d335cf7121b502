"""MovieLens: ratings of films, implicit feedback, or histories; the users are the clients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pfljax.data import checks, reading, validate_arrays
from pfljax.data.examples import Examples
from pfljax.data.sources import files, film_histories
from pfljax.errors import UserError

_FOLDERS = ("movielens", "ml-latest-small")
_ARCHIVE, _TABLE = "ml-latest-small.zip", "ratings.csv"
_HEADER = "userId,movieId,rating,timestamp"
_BEST = 5
_AGAIN = files.FETCH_AGAIN
_FEEDBACKS = ("ratings", "implicit", "histories")


class _Ratings(NamedTuple):
    """The ratings of all users, each user's in order of time.

    Attributes:
      pairs: `[n, 2]` int32, indices of user and film.
      ratings: `[n]` float32.
      users: MovieLens' ids of the users, ascending.
      films: MovieLens' ids of the films, ascending.
    """

    pairs: np.ndarray
    ratings: np.ndarray
    users: np.ndarray
    films: np.ndarray


def load_movielens(
    data_dir: str = "",
    *,
    feedback: str = "ratings",
    num_others: int = 99,
    history: int = 16,
    num_tags: int = 40,
    words: int = 512,
) -> Examples:
    """Returns ratings from 0.5 to 5, owned by their users, in order of time.

    Args:
      data_dir: A directory with `ml-latest-small.zip` or a `ratings.csv` of its columns, or with a
        directory `movielens` or `ml-latest-small` of them; for 'histories' with `movies.csv` and
        `tags.csv` beside a `ratings.csv`.
      feedback: 'ratings'; or 'implicit' for the films that a user rated, whatever the rating; or
        'histories' for the films that a user rated, the ratings, and the films rated before.
      num_others: For 'implicit' and 'histories', the number of negative samples for each rated
        film: films that the user has not rated by then, drawn with replacement, once and always
        the same.
      history: For 'histories', the number of films rated before that an example contains.
      num_tags: For 'histories', the number of the users' most frequent tags beside the genres.
      words: For 'histories', the number of hashed words of titles.

    Returns:
      Examples for a regression: inputs `[n, 2]` int32, indices of user and film in the order of
      MovieLens' ids; targets `[n]` float32. Or for ranking: inputs `[n, 1 + num_others, 2]` int32,
      with the rated film first. Or for recommendation, see `film_histories`. Each user's last
      ratings are tested.

    Raises:
      UserError: The files are missing or damaged, or an option is invalid.

    References:
      Harper, Konstan, "The MovieLens Datasets: History and Context", 2015,
      https://doi.org/10.1145/2827872.
    """
    checks.choice("data.options.movielens.feedback", feedback, _FEEDBACKS)
    searched = files.directories(data_dir, _FOLDERS)
    found = _read_ratings(*_text(searched, _TABLE))
    pairs, ratings = found.pairs, found.ratings
    common = {"name": "movielens", "owners": pairs[:, 0], "time_gap": 0}
    if feedback != "ratings":
        others = _beside_others(pairs, len(found.films), num_others)
    if feedback == "implicit":
        return Examples(
            inputs=others,
            targets=np.zeros(len(pairs), np.int32),
            num_classes=0,
            task="ranking",
            vocabulary=(len(found.users), len(found.films)),
            **common,
        )
    statistics = {
        "target_mean": float(ratings.mean(dtype=np.float64)),
        "target_std": float(ratings.std(dtype=np.float64)),
    }
    if feedback == "histories":
        checks.whole("data.options.movielens.history", history, 1, 10_000)
        checks.whole("data.options.movielens.num_tags", num_tags, 0, 10_000)
        checks.whole("data.options.movielens.words", words, 1, 2**20)
        films = film_histories.read_films(*_text(searched, "movies.csv"))
        written = film_histories.read_tags(*_text(searched, "tags.csv"))
        described = film_histories.describe(
            films, written, found.users, found.films, pairs, num_tags, words
        )
        return Examples(
            inputs=film_histories.item_numbers(others[..., 1], pairs, ratings, history),
            targets=ratings,
            num_classes=len(described.tags),
            task="recommendation",
            items=film_histories.items(described.attributes),
            vocabulary=described.vocabulary,
            class_names=described.tags,
            **statistics,
            **common,
        )
    return Examples(
        inputs=pairs,
        targets=ratings,
        num_classes=0,
        task="regression",
        vocabulary=(len(found.users), len(found.films)),
        **statistics,
        **common,
    )


def _text(searched: Sequence[Path], table: str) -> tuple[Path, str]:
    """Returns a table of MovieLens, a file or a part of the archive, and the file's path."""
    if paths := files.find(searched, [table]):
        return paths[0], files.read_text(paths[0])
    paths = files.find(searched, [_ARCHIVE])
    if paths is None:
        raise files.absent("movielens", searched, f"put {_ARCHIVE} of GroupLens there")
    path, in_folder = paths[0], f"/{table}"
    found = list(reading.members(path, lambda name: name.endswith(in_folder), _AGAIN))
    if not found:
        raise UserError(f"{path} does not contain {table}: {files.FETCH_AGAIN}.")
    return path, files.decode(path, found[0][1])


def _read_ratings(path: Path, text: str) -> _Ratings:
    header, _, rows = text.partition("\n")
    try:
        if header.strip() != _HEADER:
            raise ValueError(header)
        users, films, ratings, times = files.table(rows, ",").T
    except ValueError as error:
        raise UserError(
            f"{path} is not a table of the columns {_HEADER}: {files.FETCH_AGAIN}."
        ) from error
    for column, values in zip(("userId", "movieId"), (users, films), strict=True):
        about = {"least": 0, "remedy": _AGAIN, "row_name": files.row_of_table}
        validate_arrays.whole(path, values, column, **about)
    validate_arrays.finite(f"{path}, in the column timestamp,", times, remedy=_AGAIN)
    wrong = ~((ratings > 0) & (ratings <= _BEST))
    if wrong.any():
        row = files.row_of_table(int(np.argmax(wrong)))
        raise UserError(
            f"{path} has the rating {ratings[wrong][0]:g} in {row}; ratings must be above 0 and "
            f"at most {_BEST}: {_AGAIN}."
        )
    user_ids, users = np.unique(users, return_inverse=True)
    film_ids, films = np.unique(films, return_inverse=True)
    order = np.lexsort((times, users))
    pairs = np.stack([users, films], axis=1)[order].astype(np.int32)
    return _Ratings(pairs, ratings[order].astype(np.float32), user_ids, film_ids)


def _beside_others(pairs: np.ndarray, num_films: int, num_others: int) -> np.ndarray:
    """Returns `[n, 1 + num_others, 2]`: each pair of user and film, and others not rated by then.

    The films that a user rates later may be among the others, as they are not known yet. Without
    them, the films that are never among the others in training would show which ones are tested.

    Args:
      pairs: `[n, 2]` int32, indices of user and film; each user's in order of time.
      num_films: Number of films.
      num_others: Number of others for each pair.

    Raises:
      UserError: There are none to draw.
    """
    checks.whole("data.options.movielens.num_others", num_others, 1, 10_000)
    draw = np.random.default_rng(0)
    beside = np.empty((len(pairs), 1 + num_others, 2), np.int32)
    beside[:, 0], beside[:, :, 0] = pairs, pairs[:, :1]
    for user in np.unique(pairs[:, 0]):
        rows = np.flatnonzero(pairs[:, 0] == user)
        films = pairs[rows, 1]
        for number, row in enumerate(rows, 1):
            rated = np.unique(films[:number])
            if len(rated) == num_films:
                raise UserError(
                    f"User {user} of movielens rated every film, so that there are no others: take "
                    "data.options.movielens.feedback=ratings."
                )
            unrated = draw.integers(num_films - len(rated), size=num_others)
            # The j-th rated film has rated[j] - j films before it that are not rated.
            before = rated - np.arange(len(rated))
            beside[row, 1:, 1] = unrated + np.searchsorted(before, unrated, side="right")
    return beside
