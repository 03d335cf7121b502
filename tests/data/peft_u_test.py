"""The published form of PEFT-U, on made-up files."""

import json

import numpy as np
import pytest

from pfljax import data
from pfljax.data.sources import peft_u
from pfljax.errors import UserError


def entry(text, *labels, **more):
    return {"text": text, "label": list(labels), **more}


CONTENT = {
    "7": {
        "train": {"a": entry("one two", "joy"), "b": entry("three", "joy", "anger", note=1)},
        "val": {},
        "test": {"c": entry("four", "anger")},
    },
    "ann": {"train": {"a": entry("one two", "anger")}, "test": {"b": entry("three", "joy")}},
}


def written(directory, content=CONTENT, name="user_data_leaked.json"):
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return directory / name


def test_ratings_have_their_published_split(tmp_path):
    found = peft_u.read_peft_u(written(tmp_path))
    assert found == [
        peft_u.Rating("7", "train", "a", "one two", ("joy",)),
        peft_u.Rating("7", "train", "b", "three", ("joy", "anger")),
        peft_u.Rating("7", "test", "c", "four", ("anger",)),
        peft_u.Rating("ann", "train", "a", "one two", ("anger",)),
        peft_u.Rating("ann", "test", "b", "three", ("joy",)),
    ]


@pytest.mark.parametrize("name", ["user_data_leaked.json", "user_data_no_leak.json"])
def test_a_text_is_an_item_of_all_users_who_label_it(tmp_path, name):
    written(tmp_path / "studemo", name=name)
    pool = peft_u.load_peft_u(str(tmp_path), task="studemo", words=32)
    assert pool.inputs.tolist() == [0, 1, 2, 0, 1] and pool.owners.tolist() == [0, 0, 0, 1, 1]
    assert pool.class_names == ("anger", "joy", "joy, anger")
    assert pool.targets.tolist() == [1, 2, 0, 0, 1] and pool.owner_names == ("7", "ann")
    assert pool.items.shape == (3, 32) and pool.items.sum(axis=1).tolist() == [2, 1, 1]


def test_a_split_by_item_tests_texts_that_no_user_trains_on(tmp_path):
    content = {
        str(user): {"train": {str(text): entry(f"w{text}", "ab"[text % 2]) for text in range(20)}}
        for user in range(4)
    }
    written(tmp_path, content)
    loaded = data.load(
        "peft_u", dir=str(tmp_path), partition="natural", split="by_item", test_fraction=0.3
    )
    rows = {
        split: np.concatenate(
            [loaded.inputs[o : o + n] for o, n in zip(*getattr(loaded, split), strict=True)]
        )
        for split in ("train", "test")
    }
    assert loaded.num_clients == 4 and len(set(rows["test"])) == 6
    assert not set(rows["train"]) & set(rows["test"])


@pytest.mark.parametrize(
    "content, message",
    [
        ([], "no users"),
        ({}, "no ratings"),
        ({"7": []}, "no splits of user '7'"),
        ({"7": {"dev": {}}}, "the split 'dev'"),
        ({"7": {"train": [1]}}, "no train of user '7'"),
        ({"7": {"train": {"a": {"text": "x"}}}}, "no list of labels in 'a' of user '7'"),
        ({"7": {"train": {"a": entry("x")}}}, "no list of labels"),
        ({"7": {"train": {"a": entry("x", 3)}}}, "a label that is no text in 'a'"),
        ({"7": {"train": {"a": entry("x", "y")}, "val": {"a": entry("x", "y")}}}, "'a' twice"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        peft_u.read_peft_u(written(tmp_path, content))


def test_missing_files_and_two_texts_of_one_identity_are_refused(tmp_path):
    with pytest.raises(UserError, match="put user_data_leaked.json"):
        peft_u.load_peft_u(str(tmp_path))
    written(tmp_path, {"7": CONTENT["7"], "8": {"train": {"a": entry("other", "joy")}}})
    with pytest.raises(UserError, match="two texts 'a'"):
        peft_u.load_peft_u(str(tmp_path))
    (tmp_path / "user_data_leaked.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        peft_u.load_peft_u(str(tmp_path))
