"""Texts, signals and tables on small files in the forms in which they are distributed."""

import gzip
import json
import zipfile

import numpy as np
import pytest
import scipy.io

from pfljax.data import sources
from pfljax.data.sources import news, tables
from pfljax.errors import UserError

LOAD = sources.SOURCES


def refusal(name, folder, **options):
    with pytest.raises(UserError) as refused:
        LOAD[name](str(folder), **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    "name, file",
    [
        ("shakespeare", "input.txt"),
        ("ag_news", "train.csv"),
        ("sogou_news", "train.csv"),
        ("amazon_review", "books_train.svmlight"),
        ("office_caltech", "amazon_SURF_L10.mat"),
        ("har", "UCI HAR Dataset.zip"),
        ("wisdm", "WISDM_ar_v1.1_transformed.arff"),
        ("parkinsons", "parkinsons_updrs.data"),
        ("school", "school.mat"),
        ("landmine", "LandmineData.mat"),
        ("movielens", "ml-latest-small.zip"),
    ],
)
def test_what_is_absent_is_named(tmp_path, name, file):
    for folder in (tmp_path, tmp_path / "no such folder"):
        message = refusal(name, folder)
        assert f"No {name} in" in message and str(folder) in message and file in message
    assert "data.dir, which is empty" in refusal(name, "")


def test_shakespeare_windows(tmp_path):
    (tmp_path / "input.txt").write_text("A:\nabcabc\n\nB:\nba\nab\n\nC:\n\nA:\ncc\n")
    pool = LOAD["shakespeare"](str(tmp_path), length=4)
    letters = ["", "\n", "a", "b", "c"]

    def text(rows):
        return ["".join(letters[number] for number in row) for row in rows]

    assert text(pool.inputs) == ["abca", "bc\nc", "c\n", "ba\na", "b\n"]
    assert text(pool.targets) == ["bcab", "c\ncc", "\n", "a\nab", "\n"]
    assert pool.owners.tolist() == [0, 0, 0, 1, 1]
    assert (pool.num_classes, pool.vocabulary, pool.task) == (5, (5,), "next_token")
    assert pool.time_gap == 0
    (tmp_path / "input.txt").write_bytes(b"\xff\xfe\x00")
    assert "not text in UTF-8" in refusal("shakespeare", tmp_path)


def test_shakespeare_as_leaf_writes_it(tmp_path):
    line = "to be or not to be"
    windows = [line[start : start + 5] for start in range(len(line) - 5)]
    content = {
        "users": ["HAMLET"],
        "num_samples": [len(windows)],
        "user_data": {"HAMLET": {"x": windows, "y": list(line[5:])}},
    }
    (tmp_path / "all_data").mkdir()
    (tmp_path / "all_data" / "all_data.json").write_text(json.dumps(content))
    pool = LOAD["shakespeare"](str(tmp_path), length=len(line) - 1)
    letters = ["", *sorted(set(line))]
    assert "".join(letters[number] for number in pool.inputs[0]) == line[:-1]
    assert len(pool.inputs) == 1


def write_news(folder):
    folder.mkdir(exist_ok=True)
    train = '"3","Oil up","Oil, again: $50\\a barrel"\n"1","","It is ""oil"""\n'
    (folder / "train.csv").write_text(train)
    (folder / "test.csv.gz").write_bytes(gzip.compress(b'"4","Gas","oil"\n'))


def test_news(tmp_path):
    write_news(tmp_path / "ag_news")
    pool = LOAD["ag_news"](str(tmp_path), vocabulary=4, length=6)
    # 'oil' is the most frequent word and 'up' the first of the next; all others are unknown.
    assert pool.inputs.tolist() == [[2, 3, 2, 1, 1, 1], [1, 1, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0]]
    assert pool.targets.tolist() == [2, 0, 3] and pool.vocabulary == (4,)
    assert pool.inputs.dtype == np.int32
    write_news(tmp_path / "sogou_news")
    assert LOAD["sogou_news"](str(tmp_path)).num_classes == 5
    assert news.tokens("Don't stop; AT&T's 3.5%") == [
        *("don", "'", "t", "stop", "at&t", "'", "s", "3", ".", "5%")
    ]


def test_news_as_ids(tmp_path):
    for part in ("train", "test"):
        np.save(tmp_path / f"{part}_tokens.npy", np.array([1, 2, 9, 3], np.int32))
        np.save(tmp_path / f"{part}_lengths.npy", np.array([3, 1]))
        np.save(tmp_path / f"{part}_labels.npy", np.array([0, 3]))
    pool = LOAD["ag_news"](str(tmp_path), vocabulary=5, length=3)
    assert pool.inputs.tolist() == [[2, 3, 1], [4, 0, 0]] * 2
    np.save(tmp_path / "test_lengths.npy", np.array([3, 3]))
    assert "claims 6" in refusal("ag_news", tmp_path)
    np.save(tmp_path / "test_labels.npy", np.array([0]))
    assert "2 lengths but" in refusal("ag_news", tmp_path)


@pytest.mark.parametrize("row", ['"5","a","b"', '"x","a","b"', '"3","a', ""])
def test_news_rows_that_are_wrong(tmp_path, row):
    write_news(tmp_path)
    (tmp_path / "train.csv").write_text(row + "\n")
    assert str(tmp_path / "train.csv") in refusal("ag_news", tmp_path)


def write_amazon(folder):
    for number, name in enumerate(("books", "dvd", "electronics", "kitchen")):
        for part in ("train", "test"):
            text = f"1 0:{number + 1} 4999:2\n-1 7:3\n"
            (folder / f"{name}_{part}.svmlight.gz").write_bytes(gzip.compress(text.encode()))


def test_amazon_review(tmp_path):
    write_amazon(tmp_path)
    pool = LOAD["amazon_review"](str(tmp_path))
    assert pool.inputs.shape == (16, 5000) and pool.inputs.dtype == np.uint8
    assert pool.inputs[::2, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert pool.inputs.sum() == 20 + 8 * 5
    assert pool.targets.tolist() == [1, 0] * 8
    assert pool.owners.tolist() == np.repeat(np.arange(4), 4).tolist()
    path = tmp_path / "dvd_test.svmlight.gz"
    for text, message in (("2 0:1\n", "not -1 or 1"), ("1 5000:1\n", "damaged"), ("<html>", "no")):
        path.write_bytes(gzip.compress(text.encode()))
        found = refusal("amazon_review", tmp_path)
        assert str(path) in found and message in found
    path.write_bytes(path.read_bytes()[:-9])
    assert "truncated or damaged gzip" in refusal("amazon_review", tmp_path)
    path.unlink()
    assert "lacks dvd_test.svmlight" in refusal("amazon_review", tmp_path)


def test_office_caltech(tmp_path):
    for number, domain in enumerate(("amazon", "caltech", "dslr", "webcam")):
        content = {
            "fts": np.full((2, 800), number, np.uint8),
            "labels": np.array([[1], [10]], np.uint8),
        }
        scipy.io.savemat(tmp_path / f"{domain}_SURF_L10.mat", content)
    pool = LOAD["office_caltech"](str(tmp_path))
    assert pool.inputs.shape == (8, 800) and pool.targets.tolist() == [0, 9] * 4
    assert pool.owners.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    np.testing.assert_allclose(pool.mean, 1.5)
    path = tmp_path / "dslr_SURF_L10.mat"
    scipy.io.savemat(path, content | {"labels": np.array([[0], [11]])})
    assert f"{path} has the label -1" in refusal("office_caltech", tmp_path)
    scipy.io.savemat(path, content | {"labels": np.ones((3, 1))})
    assert "labels of shape (3, 1)" in refusal("office_caltech", tmp_path)
    scipy.io.savemat(path, {"fts": content["fts"]})
    assert "not a MATLAB file of fts and labels" in refusal("office_caltech", tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    assert str(path) in refusal("office_caltech", tmp_path)


def cells(arrays):
    stored = np.empty((1, len(arrays)), object)
    stored[0] = arrays
    return stored


def test_school_and_landmine(tmp_path):
    inputs = [np.arange(2 * size, dtype=float).reshape(size, 2) for size in (3, 2)]
    scores = [np.array([[5], [7], [9]], np.uint8), np.array([[1], [3]], np.uint8)]
    scipy.io.savemat(tmp_path / "school.mat", {"X": cells(inputs), "Y": cells(scores)})
    pool = LOAD["school"](str(tmp_path))
    assert pool.targets.tolist() == [5, 7, 9, 1, 3] and pool.targets.dtype == np.float32
    assert (pool.task, pool.num_classes, pool.target_mean) == ("regression", 0, 5.0)
    assert pool.owners.tolist() == [0, 0, 0, 1, 1]
    mines = [scores[0] > 6, scores[1] > 2]
    content = {"feature": cells(inputs), "label": cells([each.astype(np.uint8) for each in mines])}
    scipy.io.savemat(tmp_path / "LandmineData.mat", content)
    pool = LOAD["landmine"](str(tmp_path))
    assert pool.targets.tolist() == [0, 1, 1, 0, 1] and pool.inputs.dtype == np.float32
    scipy.io.savemat(tmp_path / "school.mat", {"X": cells(inputs), "Y": cells(scores[::-1])})
    assert "do not match" in refusal("school", tmp_path)


def write_har(folder):
    """Two subjects in the training part and one in the test part, two windows of each."""
    channels = [
        f"{kind}_{axis}" for kind in ("body_acc", "body_gyro", "total_acc") for axis in "xyz"
    ]
    for part, subjects in (("train", [1, 1, 3, 3]), ("test", [2, 2])):
        signals = folder / part / "Inertial Signals"
        signals.mkdir(parents=True)
        np.savetxt(folder / part / f"y_{part}.txt", [1, 6] * (len(subjects) // 2), "%d")
        np.savetxt(folder / part / f"subject_{part}.txt", subjects, "%d")
        np.savetxt(folder / part / f"X_{part}.txt", np.ones((len(subjects), 561)), " %.7e")
        for number, channel in enumerate(channels):
            rows = np.full((len(subjects), 128), number) + np.arange(128) / 1000
            np.savetxt(signals / f"{channel}_{part}.txt", rows, " %.7e")


def test_har_as_distributed(tmp_path):
    write_har(tmp_path / "UCI HAR Dataset")
    pool = LOAD["har"](str(tmp_path))
    assert pool.inputs.shape == (6, 128, 9) and pool.time_gap == 1
    np.testing.assert_allclose(pool.inputs[3, :, 4], 4 + np.arange(128) / 1000, rtol=1e-6)
    assert pool.targets.tolist() == [0, 5] * 3 and pool.owners.tolist() == [1, 1, 3, 3, 2, 2]
    features = LOAD["har"](str(tmp_path), inputs="features")
    assert features.inputs.shape == (6, 561) and features.std.tolist() == [1.0] * 561
    path = tmp_path / "UCI HAR Dataset" / "train" / "subject_train.txt"
    np.savetxt(path, [1, 1, 3], "%d")
    assert "4 labels but" in refusal("har", tmp_path) and str(path) in refusal("har", tmp_path)
    path.write_text("one\n")
    assert f"{path} is not a table of numbers" in refusal("har", tmp_path)
    path.unlink()
    assert "lacks train/subject_train.txt" in refusal("har", tmp_path)


def write_wisdm(folder, rows):
    header = '@relation toy\n@attribute "UNIQUE_ID" numeric\n@attribute class\n@data\n'
    (folder / "WISDM_ar_v1.1_transformed.arff").write_text(header + "\n".join(rows) + "\n")


def test_wisdm(tmp_path):
    def row(number, user, value, activity):
        return ",".join([str(number), str(user), *[str(value)] * 42, "?", activity])

    write_wisdm(tmp_path, [row(9, 33, 1, "Standing"), row(2, 33, 2, "Walking")])
    assert LOAD["wisdm"](str(tmp_path)).inputs[:, -1].tolist() == [0, 0]
    rows = [row(9, 33, 1, "Standing"), row(2, 33, 2, "Walking"), row(1, 7, 3, "Jogging")]
    write_wisdm(tmp_path, [*rows, rows[0].replace("?", "4"), rows[0].replace("?", "6")])
    pool = LOAD["wisdm"](str(tmp_path))
    assert pool.inputs.shape == (5, 43)
    assert pool.owners.tolist() == [7, 33, 33, 33, 33]
    assert pool.targets.tolist() == [1, 0, 5, 5, 5]
    assert pool.inputs[:, 0].tolist() == [3, 2, 1, 1, 1]
    assert pool.inputs[:, -1].tolist() == [5, 5, 5, 4, 6]  # what is missing is given the mean
    assert tables.ACTIVITIES[1] == "Jogging"
    for wrong in (rows[0].replace("Standing", "Flying"), rows[0] + ",1", "<html>"):
        write_wisdm(tmp_path, [rows[0], wrong])
        assert "arff is damaged" in refusal("wisdm", tmp_path)


def test_parkinsons(tmp_path):
    path = tmp_path / "parkinsons_updrs.data"
    header = ",".join(["subject#,age,sex,test_time,motor_UPDRS,total_UPDRS", *"abcdefghijklmnop"])

    def row(subject, day):
        return ",".join(map(str, [subject, 70, 0, day, day + 10, day + 20, *range(16)]))

    path.write_text("\n".join([header, row(2, 5.5), row(1, 8.0), row(1, 3.0)]) + "\n")
    pool = LOAD["parkinsons"](str(tmp_path))
    assert pool.inputs.shape == (3, 19) and pool.inputs[:, 2].tolist() == [3.0, 8.0, 5.5]
    assert pool.targets.tolist() == [23.0, 28.0, 25.5] and pool.owners.tolist() == [1, 1, 2]
    motor = LOAD["parkinsons"](str(tmp_path), target="motor")
    assert motor.targets.tolist() == [13.0, 18.0, 15.5]
    assert "did you mean 'motor'" in refusal("parkinsons", tmp_path, target="moto")
    path.write_text(header + "\n" + row(1, 2.0)[:-3] + "\n")
    assert "21 columns" in refusal("parkinsons", tmp_path)
    path.write_text("subject,age\n1,2\n")
    assert "a wrong header" in refusal("parkinsons", tmp_path)


@pytest.mark.parametrize("packed", [True, False])
def test_movielens(tmp_path, packed):
    text = "userId,movieId,rating,timestamp\r\n9,50,4.5,30\r\n9,10,0.5,20\r\n4,50,3.0,10\r\n"
    if packed:
        with zipfile.ZipFile(tmp_path / "ml-latest-small.zip", "w") as archive:
            archive.writestr("ml-latest-small/README.txt", "")
            archive.writestr("ml-latest-small/ratings.csv", text)
    else:
        (tmp_path / "ratings.csv").write_text(text)
    pool = LOAD["movielens"](str(tmp_path))
    assert pool.inputs.tolist() == [[0, 1], [1, 0], [1, 1]]
    assert pool.targets.tolist() == [3.0, 0.5, 4.5] and pool.vocabulary == (2, 2)
    assert pool.owners.tolist() == [0, 1, 1] and pool.time_gap == 0


def test_movielens_with_films_without_ratings(tmp_path):
    rows = [(user, film, 3.0, 10 * film) for user in (4, 9) for film in (1, user)]
    rows += [(5, 7, 1.0, 0)]
    lines = "".join(f"{','.join(map(str, row))}\n" for row in rows)
    (tmp_path / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{lines}")
    pool = LOAD["movielens"](str(tmp_path), feedback="implicit", num_others=20)
    assert (pool.task, pool.inputs.shape) == ("ranking", (5, 21, 2))
    films = {1: 0, 4: 1, 7: 2, 9: 3}
    # Each film beside all those that its user has not rated by then, those rated later included.
    had = [{0}, {0, films[4]}, {films[7]}, {0}, {0, films[9]}]
    assert pool.inputs[:, 0].tolist() == [[0, 0], [0, 1], [1, 2], [2, 0], [2, 3]]
    for row, user, known in zip(pool.inputs, pool.owners, had, strict=True):
        assert set(row[:, 0]) == {user}
        assert set(row[1:, 1]) == set(range(4)) - known
    again = LOAD["movielens"](str(tmp_path), feedback="implicit", num_others=20)
    np.testing.assert_array_equal(again.inputs, pool.inputs)
    for options, message in (
        ({"feedback": "implict"}, "'implicit'"),
        ({"feedback": "implicit", "num_others": 0}, "num_others must be"),
    ):
        with pytest.raises(UserError, match=message):
            LOAD["movielens"](str(tmp_path), **options)
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,3.0,1\n")
    with pytest.raises(UserError, match="rated every film"):
        LOAD["movielens"](str(tmp_path), feedback="implicit")


def test_movielens_files_that_are_wrong(tmp_path):
    (tmp_path / "ml-latest-small.zip").write_bytes(b"PK\x03\x04 no zip")
    assert "truncated or damaged zip" in refusal("movielens", tmp_path)
    with zipfile.ZipFile(tmp_path / "ml-latest-small.zip", "w") as archive:
        archive.writestr("ml-latest-small/movies.csv", "")
    assert "does not contain ratings.csv" in refusal("movielens", tmp_path)
    for text in ("user,item\n1,2\n", "userId,movieId,rating,timestamp\n1,2,x,4\n", ""):
        (tmp_path / "ratings.csv").write_text(text)
        assert "not a table of the columns" in refusal("movielens", tmp_path)


def test_synthetic_clients_are_more_similar_with_smaller_options():
    pool = LOAD["synthetic"](clients=20, seed=3)
    assert pool.inputs.shape[1] == 60 and pool.inputs.dtype == np.float32
    assert len(np.unique(pool.owners)) == 20 and np.bincount(pool.owners).min() >= 50
    again = LOAD["synthetic"](clients=20, seed=3)
    np.testing.assert_array_equal(pool.inputs, again.inputs)

    def spread(**options):
        drawn = LOAD["synthetic"](clients=20, seed=3, **options)
        means = [drawn.inputs[drawn.owners == client].mean() for client in range(20)]
        return np.std(means)

    assert spread(beta=0.0) < spread(beta=1.0) < spread(beta=9.0)
    assert LOAD["synthetic"](clients=2, identical=True).name == "synthetic_iid"
    for slip in ({"alpha": -1.0}, {"beta": float("nan")}, {"clients": 0}, {"seed": -1}):
        assert next(iter(slip)) in refusal("synthetic", "", **slip)
