"""Histories of films on made-up files: items, what was rated before, and tags that would tell."""

import numpy as np
import pytest

from pfljax import data
from pfljax.data.sources import film_histories
from pfljax.data.sources.hashed_words import hash_words
from pfljax.errors import UserError

# Films 10, 20, 30, 40 and 50, in the order of ids 1 to 5; film 60 has no rating.
FILMS = (
    "movieId,title,genres\n"
    '10,"Old, Film (1990)",Drama|War\n20,Two (1991),Comedy\n30,Three (1992),Drama\n'
    "40,Four (1993),(no genres listed)\n50,Five (1994),Comedy|War\n60,Six (1995),Horror\n"
)
# User 1 rates the films 10, 20, 30, 40 in this order, and user 2 the films 50, 40, 30.
RATINGS = (
    "userId,movieId,rating,timestamp\n"
    "1,40,0.5,9\n1,10,5.0,1\n1,20,3.5,2\n1,30,4.0,3\n2,50,2.0,1\n2,30,1.0,8\n2,40,3.0,5\n"
)
# The last two films of user 1 are 30 and 40, and those of user 2 are 40 and 30.
TAGS = (
    "userId,movieId,tag,timestamp\n"
    "1,10,Funny,5\n1,40,secret,5\n2,40,secret,5\n2,50,funny ,5\n1,30,secret,5\n2,10,dark,9\n"
)
OPTIONS = {"feedback": "histories", "num_others": 3, "history": 2, "num_tags": 1, "words": 8}


def write(root, films=FILMS, ratings=RATINGS, tags=TAGS):
    for name, text in (("movies", films), ("ratings", ratings), ("tags", tags)):
        (root / f"{name}.csv").write_text(text)
    return str(root)


def read(root, **options):
    return data.SOURCES["movielens"](str(root), **OPTIONS | options)


def test_histories_have_what_the_user_rated_before(tmp_path):
    pool = read(write(tmp_path))
    assert (pool.task, pool.num_classes, pool.inputs.shape) == ("recommendation", 5, (7, 6))
    assert pool.targets.tolist() == [5, 3.5, 4, 0.5, 2, 3, 1]
    examples = pool.items[pool.inputs]
    # The chosen films first, without a rating; others that are not rated by then.
    assert examples[:, 0, 0].tolist() == [1, 2, 3, 4, 5, 4, 3]
    assert not examples[:, :4, 1].any() and examples[:, :4, 0].all()
    known = [{1}, {1, 2}, {1, 2, 3}, {1, 2, 3, 4}, {5}, {4, 5}, {3, 4, 5}]
    for row, films in zip(examples, known, strict=True):
        assert not set(row[1:4, 0]) & films
    # Films and half stars of the two ratings before, the last one at the end.
    history = [[[0, 0], [0, 0]], [[0, 0], [1, 10]], [[1, 10], [2, 7]], [[2, 7], [3, 8]]]
    history += [[[0, 0], [0, 0]], [[0, 0], [5, 4]], [[5, 4], [4, 6]]]
    assert examples[:, 4:, :2].tolist() == history


def test_items_have_genres_tags_and_hashed_words(tmp_path):
    pool = read(write(tmp_path))
    genres = tuple(f"genre: {name}" for name in ("Comedy", "Drama", "Horror", "War"))
    assert pool.class_names == (*genres, "funny")
    assert pool.vocabulary == (6, 11, *(1 + 5 + 8,) * 13)
    assert not pool.items[0].any() and len(pool.items) == 1 + 11 * 5
    films = pool.items[1:6]
    assert films[:, 0].tolist() == [1, 2, 3, 4, 5] and not films[:, 1].any()
    for level in range(11):  # the same films with each rating
        rated = pool.items[1 + 5 * level : 6 + 5 * level]
        assert (rated[:, 1] == level).all()
        np.testing.assert_array_equal(rated[:, [0, *range(2, 15)]], films[:, [0, *range(2, 15)]])
    tags = [sorted(set(row[2:10].tolist()) - {0}) for row in films]
    assert tags == [[2, 4, 5], [1], [2], [], [1, 4, 5]]
    words = [set(row[10:].tolist()) - {0} for row in films]
    assert words[0] == {6 + word for word in hash_words("Old, Film (1990)", 8)}
    assert all(words) and max(map(max, words)) < 14


def test_tags_for_the_last_two_films_of_a_user_are_left_out(tmp_path):
    # The tag 'secret' is the most frequent one, and all of it is of last films.
    pool = read(write(tmp_path), num_tags=9)
    assert pool.class_names[4:] == ("funny", "dark")


@pytest.mark.parametrize("ratings_of_users", [[1], [2], [1, 2, 3, 1, 7], [9, 1, 1, 2, 30]])
def test_tags_count_unless_they_are_for_one_of_the_last_two_films(ratings_of_users):
    draw = np.random.default_rng(0)
    rated = [draw.permutation(30)[:size] for size in ratings_of_users]  # of each user, in order
    films = {10 + film: film_histories.Film(f"{film}", ()) for film in range(30)}
    written = [
        film_histories.Tag(100 + user, 10 + film, f"{user} of {film}")
        for user in range(len(rated))
        for film in range(30)
    ]
    known = np.unique(np.concatenate(rated))
    pairs = [(user, np.searchsorted(known, film)) for user, own in enumerate(rated) for film in own]
    found = film_histories.describe(
        films, written, 100.0 + np.arange(len(rated)), 10.0 + known, np.int32(pairs), 1000, 8
    )
    held = {f"{user} of {film}" for user, own in enumerate(rated) for film in own[-2:]}
    assert len(held) == sum(min(size, 2) for size in ratings_of_users)
    assert set(found.tags) == {tag.text for tag in written} - held


def test_a_data_set_of_histories_splits_off_the_last_two(tmp_path):
    dataset = data.load(
        "movielens",
        dir=write(tmp_path),
        partition="natural",
        min_size=3,
        split="last_two",
        options=OPTIONS,
    )
    assert dataset.train.sizes.tolist() == [2, 1] and dataset.test.sizes.tolist() == [1, 1]
    assert not dataset.class_counts().any() and dataset.class_counts().shape == (2, 5)
    assert "of (6,) items with 5 tags" in data.describe(dataset)


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"films": "movieId,title\n10,Old\n"},
            "movies.csv.*not a table of the columns",
        ),
        ({"films": FILMS + "x,Seven,Drama\n"}, "movies.csv is damaged at row 7"),
        ({"films": FILMS.replace("40,Four (1993),(no genres listed)\n", "")}, "of the film 40"),
        ({"films": FILMS + '70,"Seven,Drama\n'}, "movies.csv is damaged"),
        ({"tags": TAGS + "1,10,a,b,5\n"}, "tags.csv is damaged at row 7"),
        ({"tags": ""}, "tags.csv is damaged at row 1"),
    ],
)
def test_damaged_tables(tmp_path, changed, message):
    write(tmp_path, **changed)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_missing_tables_and_options(tmp_path):
    write(tmp_path)
    for options in ({"history": 0}, {"num_tags": -1}, {"words": 0}):
        with pytest.raises(UserError, match=f"movielens.{next(iter(options))} must be"):
            read(tmp_path, **options)
    (tmp_path / "tags.csv").unlink()
    with pytest.raises(UserError, match="put ml-latest-small.zip"):
        read(tmp_path)


def test_a_chosen_item_with_a_rating_is_refused(tmp_path):
    pool = read(write(tmp_path))
    assert data.validate.examples(pool, "it").targets.dtype == np.float32
    rated = pool._replace(inputs=pool.inputs[:, ::-1].copy())
    with pytest.raises(UserError, match="in example 0 a first item that is none or has a rating"):
        data.validate.examples(rated, "it")
    for changes in ({"items": None, "vocabulary": ()}, {"items": pool.items[:, :2]}):
        with pytest.raises(UserError, match="it "):
            data.validate.examples(pool._replace(**changes), "it")
    with pytest.raises(UserError, match="14 tags, which are not among 14 ids"):
        data.validate.examples(pool._replace(num_classes=14, class_names=()), "it")


def test_more_ratings_than_positions_keep_the_last_ones():
    pairs = np.array([[0, 0], [0, 1], [0, 2], [0, 3], [1, 3]], np.int32)
    choices = np.zeros((5, 1), np.int32)
    found = film_histories.item_numbers(choices, pairs, np.float32([1, 2, 3, 4, 5]), history=2)
    # Film i at `level` half stars is row 1 + 4 level + i.
    wanted = [[0, 0], [0, 9], [9, 18], [18, 27], [0, 0]]
    assert found[:, 1:].tolist() == wanted and (found[:, 0] == 1).all()
