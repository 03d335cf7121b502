"""Ratings of texts by annotators: the files, items that examples share, and splits by item."""

import annotations
import numpy as np
import pytest

import pfljax
from pfljax import data
from pfljax.data import split, validate
from pfljax.data.sources import annotators
from pfljax.errors import UserError


def load(directory, name="popquorn", **changes):
    settings = {"partition": "natural", "min_size": 2, "dir": str(directory), "num_clients": 2}
    return data.load(name, **settings | changes)


def items_of(dataset, part):
    """The items of the examples of a split, all clients together."""
    ends = zip(*getattr(dataset, part), strict=True)
    return {item for start, size in ends for item in dataset.inputs[start : start + size].tolist()}


@pytest.mark.parametrize("name", ["md_agreement", "popquorn", "studemo"])
def test_examples_name_their_items(tmp_path, name):
    ratings, encoded = annotations.write(tmp_path, name)
    pool = data.SOURCES[name](str(tmp_path), features="minilm")
    np.testing.assert_array_equal(pool.inputs, ratings["item"])
    np.testing.assert_array_equal(pool.owners, ratings["user"])
    np.testing.assert_allclose(pool.items, 0.025 * encoded["text"], rtol=1e-6)
    labels = ratings["label"] if name != "studemo" else ratings["label"][:, 0]
    above = {"popquorn": 1}.get(name, 0)
    np.testing.assert_array_equal(pool.targets, labels > above)
    assert (pool.num_classes, len(pool.owner_names)) == (2, annotations.NUM_USERS)


def test_other_labels_are_options(tmp_path):
    ratings, _ = annotations.write(tmp_path, "popquorn")
    pool = data.SOURCES["popquorn"](str(tmp_path), labels="rating")
    np.testing.assert_array_equal(pool.targets, ratings["label"] - 1)
    assert pool.num_classes == 5
    ratings, _ = annotations.write(tmp_path, "studemo")
    pool = data.SOURCES["studemo"](str(tmp_path), features="minilm", labels="valence")
    np.testing.assert_array_equal(pool.targets, ratings["label"][:, 8] + 3)
    assert pool.num_classes == 7


def test_clients_have_names_and_groups_in_their_order(tmp_path):
    annotations.write(tmp_path, "popquorn")
    dataset = load(tmp_path, unseen_fraction=0.4)
    numbers = [int(name.split()[1]) for name in dataset.client_names]
    assert sorted(numbers) == list(range(annotations.NUM_USERS)) and numbers != sorted(numbers)
    wanted = [("woman", "man")[number % 2] for number in numbers]
    assert dataset.groups["gender"].tolist() == wanted
    mixed = load(tmp_path, partition="iid")
    assert mixed.groups is None and not mixed.client_names


def test_texts_are_in_the_order_of_items(tmp_path):
    annotations.write(tmp_path, "studemo")
    texts = annotators.read_texts("studemo", str(tmp_path))
    assert texts == [f"text {number}" for number in range(annotations.NUM_ITEMS)]
    annotations.write(tmp_path, "studemo", text_offsets=np.int32([0, 5]))
    with pytest.raises(UserError, match="text_offsets that do not match"):
        annotators.read_texts("studemo", str(tmp_path))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"label": None}, "lacks label"),
        ({"item": np.full(72, 20)}, "the item 20"),
        ({"user": np.full(72, -1)}, "the user -1"),
        ({"label": np.full(72, 6)}, "the label 6"),
        ({"label": np.ones(71)}, "71 labels"),
        ({"user_race": np.full(6, 6)}, "the user_race 6"),
        ({"user_age": np.zeros(5)}, "5 values of user_age"),
        ({"label": np.full(72, "a")}, "not a number|not an array of numbers"),
    ],
)
def test_files_that_are_wrong(tmp_path, changed, message):
    annotations.write(tmp_path, "popquorn", **changed)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"popquorn_offensiveness.npz and features_minilm.npz"):
        load(tmp_path)
    annotations.write(tmp_path, "popquorn")
    with pytest.raises(UserError, match="lacks features_wordllama.npz"):
        load(tmp_path, options={"features": "wordllama"})


def test_no_client_trains_on_an_item_that_another_tests(tmp_path):
    annotations.write(tmp_path, "popquorn")
    parts = {}
    for kind in ("by_item", "stratified"):
        dataset = load(tmp_path, split=kind, test_fraction=0.3, validation_fraction=0.2)
        assert sum(getattr(dataset, part).sizes.sum() for part in validate.SPLITS) == 72
        parts[kind] = [items_of(dataset, part) for part in validate.SPLITS]
    train, validation, test = parts["by_item"]
    assert not train & test and not train & validation and not validation & test
    assert (len(train), len(validation), len(test)) == (10, 3, 6)  # of 19 rated ones
    # Otherwise most tested items are trained on by other clients.
    assert len(parts["stratified"][0] & parts["stratified"][2]) > 10


def test_splits_require_what_they_need(tmp_path):
    annotations.write(tmp_path, "popquorn")
    with pytest.raises(UserError, match="in no order of time: use data.split=stratified"):
        load(tmp_path, split="temporal")
    with pytest.raises(UserError, match="has no items that several clients have in common"):
        data.load("digits", split="by_item")
    timed = data.Examples(
        "toy", np.arange(8), np.zeros(8, np.int32), 1, time_gap=0, items=np.eye(8)
    )
    arguments = {"test_fraction": 0.25, "validation_fraction": 0.0, "unseen_fraction": 0, "seed": 0}
    with pytest.raises(UserError, match="use data.split=temporal"):
        data.assemble(timed, [np.arange(8)], split="by_item", **arguments)
    one = data.assemble(timed, [np.arange(8)], split="temporal", **arguments)
    assert one.inputs.tolist() == list(range(8)) and one.test.sizes.tolist() == [2]
    with pytest.raises(UserError, match="none is left to train on"):
        rows = [np.array([0, 1]), np.array([2])]
        split.split_by_item(np.array([0, 1, 2]), rows, 0.6, 0.0, np.random.default_rng(0))


def test_item_numbers_are_checked():
    items = np.eye(3, dtype=np.float32)
    pool = data.Examples("toy", np.array([0, 3]), np.zeros(2, np.int32), 1, items=items)
    with pytest.raises(UserError, match="item number 3 in example 1"):
        validate.examples(pool, "toy")
    bad = pool._replace(inputs=np.array([0, 1]), items=np.where(items, np.nan, items))
    with pytest.raises(UserError, match="the value nan in column 0 of item 0"):
        validate.examples(bad, "toy")
    with pytest.raises(UserError, match="not item numbers"):
        validate.examples(pool._replace(inputs={"a": np.array([0, 1])}), "toy")


def test_standardized_and_saved_as_if_every_example_had_a_copy(tmp_path):
    annotations.write(tmp_path, "popquorn")
    shared = load(tmp_path, unseen_fraction=0.2)
    copies = shared.gathered()
    assert copies.items is None and copies.inputs.shape == (72, annotations.WIDTH)
    np.testing.assert_array_equal(copies.inputs[5], shared.items[shared.inputs[5]])
    file = str(tmp_path / "saved.npz")
    data.save_npz(file, shared)
    np.testing.assert_array_equal(data.load_npz(file).inputs, copies.inputs)
    pooled = load(tmp_path, unseen_fraction=0.2, standardize="pooled")
    rows = np.concatenate(
        [np.arange(start, start + size) for start, size in zip(*shared.train, strict=True)][:5]
    )
    np.testing.assert_allclose(pooled.mean, copies.inputs[rows].mean(axis=0), rtol=1e-5)
    own = load(tmp_path, unseen_fraction=0.2, standardize="client")
    assert own.items is None
    np.testing.assert_allclose(own.inputs[: own.train.sizes[0]].mean(axis=0), 0, atol=1e-6)
    assert "of shape 3 (float32) in 2 classes, of 20 items" in data.describe(shared)


def test_a_run_records_names_and_groups_of_clients(tmp_path):
    """Also: a deployed model reads the features of a text, not its number."""
    annotations.write(tmp_path, "popquorn")
    run = pfljax.fit(
        "fedavg", load(tmp_path), model="logistic", rounds=2, workdir=str(tmp_path / "run")
    )
    with np.load(tmp_path / "run" / "clients.npz") as saved:
        numbers = [int(name.split()[1]) for name in saved["client_name"]]
        assert saved["group_gender"].tolist() == [("woman", "man")[each % 2] for each in numbers]
    model = run.client("annotator 2")
    assert model.predict(run.dataset.items[:4]).shape == (4,)
