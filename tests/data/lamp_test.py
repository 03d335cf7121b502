"""The published forms of LaMP and LongLaMP, on made-up files."""

import json

import histories
import numpy as np
import pytest

from pfljax import data
from pfljax.data.sources import hashed_words, lamp
from pfljax.errors import UserError

DOCUMENTS = {
    "LaMP_1": {"title": "a title", "abstract": "some words"},
    "LaMP_2": {"description": "a film", "tag": "comedy"},
    "LaMP_3": {"text": "a review", "score": "4"},
    "LaMP_4": {"text": "an article", "title": "a headline"},
    "LaMP_5": {"title": "a title", "abstract": "some words"},
    "LaMP_6": {"text": "a mail", "title": "a subject"},
    "LaMP_7": {"text": "a tweet"},
}
WANTED = {
    "LaMP_1": lamp.Document("a title some words", None),
    "LaMP_2": lamp.Document("a film", "comedy"),
    "LaMP_3": lamp.Document("a review", "4"),
    "LaMP_4": lamp.Document("an article", "a headline"),
    "LaMP_5": lamp.Document("some words", "a title"),
    "LaMP_6": lamp.Document("a mail", "a subject"),
    "LaMP_7": lamp.Document("a tweet", None),
}


@pytest.mark.parametrize("task", lamp.LAMP)
def test_the_tasks_of_lamp(tmp_path, task):
    profile = [{"id": str(number), **DOCUMENTS[task]} for number in range(2)]
    entries = [{"id": "310", "input": "what?", "profile": profile}, {"id": "311", "input": "and?"}]
    entries[1]["profile"] = []
    questions = histories.write_json(tmp_path / "dev_questions.json", entries)
    golds = [{"id": "311", "output": "b"}, {"id": "310", "output": "a"}]
    outputs = histories.write_json(tmp_path / "dev_outputs.json", {"task": task, "golds": golds})
    assert lamp.read_lamp(questions, task, outputs) == [
        lamp.Query("310", "what?", "a", (WANTED[task],) * 2),
        lamp.Query("311", "and?", "b", ()),
    ]
    assert [query.output for query in lamp.read_lamp(questions, task)] == [None, None]


@pytest.mark.parametrize(
    "task, entry, document",
    [
        (
            "abstract_generation",
            {"name": "u"},
            ({"id": 1, "title": "t", "abstract": "a"}, "t", "a"),
        ),
        (
            "product_review",
            {"reviewerId": "u"},
            (
                {"overall": 5.0, "summary": "s", "description": "d", "reviewText": "r"},
                "5.0 s d",
                "r",
            ),
        ),
        ("topic_writing", {"author": "u"}, ({"summary": "s", "content": "c"}, "s", "c")),
    ],
)
@pytest.mark.parametrize("lines", [False, True])
def test_the_tasks_of_long_lamp(tmp_path, task, entry, document, lines):
    fields, text, label = document
    entries = [{**entry, "input": f"write {n}", "output": "o", "profile": [fields]} for n in "ab"]
    path = histories.write_json(tmp_path / "test.json", entries)
    if lines:
        path.write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    profile = (lamp.Document(text, label),)
    wanted = [lamp.Query("u", f"write {n}", "o", profile) for n in "ab"]
    assert lamp.read_long_lamp(path, task) == wanted
    other = "topic_writing" if task != "topic_writing" else "product_review"
    with pytest.raises(UserError, match="an entry without"):
        lamp.read_long_lamp(path, other)


def test_a_user_is_a_client_whose_query_is_tested(tmp_path):
    entries, texts = histories.write_lamp(tmp_path / "LaMP_3")
    dataset = data.load(
        "lamp",
        dir=str(tmp_path),
        partition="natural",
        min_size=2,
        split="temporal",
        test_fraction=0.2,
        validation_fraction=0.0,
        unseen_fraction=0.4,
    )
    assert dataset.num_classes == 3 and dataset.num_unseen == 2
    assert set(dataset.client_names) == {entry["id"] for entry in entries}
    for client, name in enumerate(dataset.client_names):
        user = int(name[1:])
        rows = np.arange(5) + dataset.train.offsets[client]
        assert (dataset.train.sizes[client], dataset.test.sizes[client]) == (4, 1)
        wanted = hashed_words.count_hashed_words(texts[user], 1024)
        np.testing.assert_array_equal(dataset.inputs[rows[:4]], wanted)
        labels = [(user + number) % 3 for number in range(4)] + [user % 3]
        assert dataset.targets[rows].tolist() == labels
        query = dataset.inputs[dataset.test.offsets[client]]
        np.testing.assert_array_equal(
            query, hashed_words.count_hashed_words([entries[user]["input"]], 1024)[0]
        )


def test_words_are_counted():
    counts = hashed_words.count_hashed_words(["One two, TWO", ""], 1000)
    assert sorted(counts[0][counts[0] > 0].tolist()) == [1, 2] and not counts[1].any()


def break_questions(entries):
    del entries[1]["profile"]


def break_score(entries):
    entries[2]["profile"][1]["score"] = None


def break_id(entries):
    entries[0]["id"] = "another"


@pytest.mark.parametrize(
    "damage, message",
    [
        (break_questions, "an entry without a profile"),
        (break_score, "without 'score'"),
        (break_id, "no output of the query 'another'"),
        (lambda entries: entries.clear(), "as it is empty"),
    ],
)
def test_damaged_queries_are_refused(tmp_path, damage, message):
    entries, _ = histories.write_lamp(tmp_path)
    damage(entries)
    histories.write_json(tmp_path / "dev_questions.json", entries)
    with pytest.raises(UserError, match=message):
        data.SOURCES["lamp"](str(tmp_path))


def test_other_files_and_options_are_refused(tmp_path):
    load = data.SOURCES["lamp"]
    with pytest.raises(UserError, match="put dev_questions.json and dev_outputs.json of LaMP_3"):
        load(str(tmp_path))
    histories.write_lamp(tmp_path)
    for options in ({"task": "LaMP_7"}, {"split": "test"}, {"words": 1}):
        with pytest.raises(UserError, match=f"data.options.lamp.{[*options][0]}"):
            load(str(tmp_path), **options)
    with pytest.raises(UserError, match="no outputs of LaMP_2"):
        load(str(tmp_path), task="LaMP_2")
    (tmp_path / "dev_questions.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not JSON"):
        load(str(tmp_path))
