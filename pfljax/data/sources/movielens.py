"""MovieLens: ratings of films, or implicit feedback; the users are the clients."""

from __future__ import annotations

import numpy as np

from pfljax.data import checks, reading, validate
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.errors import UserError

_FOLDERS = ("movielens", "ml-latest-small")
_ARCHIVE, _TABLE = "ml-latest-small.zip", "ratings.csv"
_HEADER = "userId,movieId,rating,timestamp"
_BEST = 5
_AGAIN = files.FETCH_AGAIN
_FEEDBACKS = ("ratings", "implicit")


def load_movielens(
    data_dir: str = "", *, feedback: str = "ratings", num_others: int = 99
) -> Examples:
    """Returns ratings from 0.5 to 5, owned by their users, in order of time.

    Args:
      data_dir: A directory with `ml-latest-small.zip` or a `ratings.csv` of its columns, or with a
        directory `movielens` or `ml-latest-small` of them.
      feedback: 'ratings', or 'implicit' for the films that a user rated, whatever the rating.
      num_others: For 'implicit', the number of negative samples for each rated film: films that the
        user has not rated by then, drawn with replacement, once and always the same.

    Returns:
      Examples for a regression: inputs `[n, 2]` int32, indices of user and film in the order of
      MovieLens' ids; targets `[n]` float32. Or for ranking: inputs `[n, 1 + num_others, 2]` int32,
      with the rated film first. Each user's last ratings are tested.

    Raises:
      UserError: The files are missing or damaged, or an option is invalid.

    References:
      Harper, Konstan, "The MovieLens Datasets: History and Context", 2015,
      https://doi.org/10.1145/2827872.
    """
    checks.choice("data.options.movielens.feedback", feedback, _FEEDBACKS)
    searched = files.directories(data_dir, _FOLDERS)
    if paths := files.find(searched, [_TABLE]):
        path, text = paths[0], files.read_text(paths[0])
    elif paths := files.find(searched, [_ARCHIVE]):
        path = paths[0]
        in_folder = f"/{_TABLE}"
        found = list(reading.members(path, lambda name: name.endswith(in_folder), _AGAIN))
        if not found:
            raise UserError(f"{path} does not contain {_TABLE}: {files.FETCH_AGAIN}.")
        text = files.decode(path, found[0][1])
    else:
        raise files.absent("movielens", searched, f"put {_ARCHIVE} of GroupLens there")
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
        validate.whole(path, values, column, **about)
    validate.finite(f"{path}, in the column timestamp,", times, remedy=_AGAIN)
    wrong = ~((ratings > 0) & (ratings <= _BEST))
    if wrong.any():
        row = files.row_of_table(int(np.argmax(wrong)))
        raise UserError(
            f"{path} has the rating {ratings[wrong][0]:g} in {row}; ratings must be above 0 and "
            f"at most {_BEST}: {_AGAIN}."
        )
    names, users = np.unique(users, return_inverse=True)
    titles, films = np.unique(films, return_inverse=True)
    order = np.lexsort((times, users))
    pairs = np.stack([users, films], axis=1)[order].astype(np.int32)
    ratings = ratings[order].astype(np.float32)
    if feedback == "implicit":
        return Examples(
            name="movielens",
            inputs=_beside_others(pairs, len(titles), num_others),
            targets=np.zeros(len(pairs), np.int32),
            num_classes=0,
            task="ranking",
            owners=pairs[:, 0],
            time_gap=0,
            vocabulary=(len(names), len(titles)),
        )
    return Examples(
        name="movielens",
        inputs=pairs,
        targets=ratings,
        num_classes=0,
        task="regression",
        owners=pairs[:, 0],
        time_gap=0,
        vocabulary=(len(names), len(titles)),
        target_mean=float(ratings.mean(dtype=np.float64)),
        target_std=float(ratings.std(dtype=np.float64)),
    )


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
