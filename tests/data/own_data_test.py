"""Data of one's own: arrays, folders of images, PFLlib's ids, and clients that are not tested."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from pfljax import data
from pfljax.data import reading
from pfljax.data.sources import image_files
from pfljax.errors import UserError
from pfljax.training.run import loop
from pfljax.training.study import experiment
from pfljax.training.study.config import default_config

# Arrays.

INPUTS = np.random.default_rng(0).normal(3.0, 2.0, size=(40, 5))
CLIENTS = np.repeat(["bob", "ann", "eve", "dan"], 10)


def from_arrays(targets=None, clients=CLIENTS, inputs=INPUTS, **options):
    targets = np.arange(40) % 2 if targets is None else targets
    return data.from_arrays(inputs, targets, clients, **options)


@pytest.mark.parametrize(
    "labels, names",
    [
        (["dog", "cat"], ("cat", "dog")),
        (np.array(["dog", "cat"], object), ("cat", "dog")),  # as pandas holds them
        ([-1, 1], ("-1", "1")),
        ([-1.0, 1.0], ("-1", "1")),
        ([0.0, 1.0], ()),
        (np.int64([0, 1]), ()),
        ([False, True], ("False", "True")),
        ([10**9, 3], ("3", "1000000000")),
    ],
)
def test_labels_of_any_kind_are_numbered_and_remembered(tmp_path, labels, names):
    made = from_arrays(np.tile(np.asarray(labels), 20), unseen_fraction=0.3)
    assert (made.class_names, made.num_classes, made.targets.dtype) == (names, 2, np.int32)
    order = np.argsort(labels)
    # Each example still has the label that it was given: its inputs tell which example it is.
    rows = [int(np.argmin(np.abs(INPUTS - row).sum(axis=1))) for row in made.inputs]
    assert sorted(rows) == list(range(40))
    assert made.targets.tolist() == [order.tolist().index(row % 2) for row in rows]
    for client, name in enumerate(made.client_names):
        start = made.train.offsets[client]
        end = made.test.offsets[client] + made.test.sizes[client]
        assert {CLIENTS[row] for row in rows[start:end]} == {name}
    assert sorted(made.client_names) == ["ann", "bob", "dan", "eve"] and made.num_unseen == 1
    data.save_npz(str(tmp_path / "own.npz"), made)
    loaded = data.load(name="npz", dir=str(tmp_path / "own.npz"))
    assert (loaded.class_names, loaded.client_names) == (names, made.client_names)
    np.testing.assert_array_equal(loaded.targets, made.targets)


def test_inputs_are_normalized_unless_they_are_ids():
    made = from_arrays()
    seen = (made.inputs - made.mean) / made.std
    np.testing.assert_allclose([seen.mean(axis=0), seen.std(axis=0)], [[0] * 5, [1] * 5], atol=1e-5)
    assert from_arrays(normalize=False).mean == 0.0
    ids = np.arange(200).reshape(40, 5) % 7
    made = from_arrays(inputs=ids, vocabulary=[7])
    assert (made.vocabulary, made.mean, made.inputs.dtype) == ((7,), 0.0, np.int32)
    made = from_arrays(np.arange(40.0), task="regression", clients=np.arange(40) % 4)
    assert (made.target_mean, made.client_names, made.class_names) == (19.5, (), ())
    made = from_arrays(ids, inputs=ids, vocabulary=[7], task="next_token")
    assert made.num_classes == 7 and made.targets.shape == (40, 5)
    assert from_arrays(inputs=INPUTS[:, 0]).inputs.shape == (40, 1)


def test_in_time_the_last_examples_are_tested():
    made = from_arrays(np.zeros(40, int), inputs=np.arange(40)[:, None], in_time=True)
    for client in range(4):
        start, size = made.test.offsets[client], made.test.sizes[client]
        before = made.inputs[made.train.offsets[client] : start]
        assert size == 2 and before.max() < made.inputs[start : start + size].min()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"targets": np.zeros(39, int)}, "inputs of shape .40, 5. and targets of shape .39,."),
        ({"clients": CLIENTS[:, None].repeat(2, 1)}, "clients of shape .40, 2."),
        ({"clients": [None] * 40}, "clients of shape .40,. and dtype object"),
        ({"clients": np.full(40, 1.5)}, "the client 1.5"),
        ({"clients": np.full(40, np.nan)}, "the client nan"),
        ({"clients": np.minimum(np.arange(40), 1)}, "single example of the client 0"),
        ({"targets": np.full(40, 0.5)}, "label 0.5 .* task='regression' if these are not classes"),
        ({"targets": [["a"]] * 40}, "labels of shape .40, 1."),
        ({"inputs": np.where(INPUTS > 6, np.nan, INPUTS)}, "the value nan in column"),
        ({"inputs": np.array([["a"]] * 40)}, "inputs of dtype <U1"),
        ({"inputs": np.zeros((0, 5)), "targets": [], "clients": []}, "pass one target"),
        ({"task": "next_token"}, "0 classes"),
        ({"test_fraction": 0.0}, "test_fraction"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message) as refused:
        from_arrays(**changes)
    assert "\n" not in str(refused.value)


# Clients that are not tested, and labels in NumPy's own integers.


def test_what_save_npz_writes_load_npz_reads(tmp_path):
    made = data.load(name="digits", partition="iid", num_clients=3)
    made = made._replace(targets=made.targets.astype(np.int64), num_classes=np.int64(10))
    data.save_npz(str(tmp_path / "made.npz"), made)
    loaded = data.load_npz(str(tmp_path / "made.npz"))
    np.testing.assert_array_equal(loaded.targets, made.targets)
    assert loaded.targets.dtype == np.int32
    with pytest.raises(UserError, match="label 10 but 10 classes.*: correct the data set before"):
        data.save_npz(str(tmp_path / "other.npz"), made._replace(targets=made.targets + 1))
    assert not (tmp_path / "other.npz").exists()


def test_a_file_of_zeros_is_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LARGEST_UNPACKED", 2**16)
    made = from_arrays(inputs=np.zeros((40, 2000)))
    data.save_npz(str(tmp_path / "made.npz"), made)
    np.testing.assert_array_equal(data.load_npz(str(tmp_path / "made.npz")).inputs, made.inputs)


def without_test(path):
    """Writes three clients, the second of which has nothing to be tested on."""
    with data.StoreWriter(str(path), name="made", num_classes=2) as store:
        for train in (6, 10, 7):
            store.add(INPUTS[:10].astype(np.float32), np.arange(10) % 2, train=train)


def run(tmp_path, **settings):
    config = default_config()
    config.rounds, config.eval_every, config.checkpoint_every = 1, 1, 0
    config.model.name, config.engine.devices = "logistic", 1
    config.data.update({key: settings[key] for key in ("name", "dir")})
    if "model" in settings:
        with config.unlocked():
            config.model = settings["model"]
    return loop.run(experiment.build(config), tmp_path)


def test_a_client_without_test_examples_trains_but_is_not_scored(tmp_path):
    without_test(tmp_path / "store")
    loaded = data.load(name="store", dir=str(tmp_path / "store"))
    assert loaded.test.sizes.tolist() == [4, 0, 3]
    file = str(tmp_path / "made.npz")
    data.save_npz(file, loaded)
    run(tmp_path / "run", name="npz", dir=file)
    clients = np.load(tmp_path / "run" / "clients.npz")
    assert clients["test_size"].tolist() == [4, 0, 3] and clients["train_size"].min() == 6
    scores = clients["personal_test_accuracy"]
    assert np.isnan(scores).tolist() == [False, True, False]
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["train/cohort"] == 3
    assert row["personal/test_accuracy_unweighted"] == pytest.approx(np.nanmean(scores))
    assert row["personal/test_accuracy_weighted"] == pytest.approx(
        (4 * scores[0] + 3 * scores[2]) / 7
    )


# PFLlib's directories.


def pfllib(root, *parts):
    for client, (x, sizes) in enumerate(parts):
        for part, size in zip(("train", "test"), sizes, strict=True):
            (root / part).mkdir(parents=True, exist_ok=True)
            held = {"x": x[:size], "y": np.arange(size) % 2}
            np.savez_compressed(root / part / f"{client}.npz", data=held)
    return {"name": "pfllib", "dir": str(root)}


WORDS = np.arange(60, dtype=np.int64).reshape(10, 6) % 9


def test_integers_of_pfllib_stay_integers_for_models_that_read_ids(tmp_path):
    settings = pfllib(tmp_path / "ids", (WORDS, (8, 4)), (WORDS, (9, 4)))
    assert data.load(**settings).inputs.dtype == np.int32
    result = run(tmp_path / "run", **settings, model={"name": "fasttext", "vocabulary": 9})
    assert result["model"] == "fasttext"
    run(tmp_path / "measured", **settings)
    with pytest.raises(UserError, match="the id 8 of row .* but a vocabulary of 8"):
        run(tmp_path / "few", **settings, model={"name": "fasttext", "vocabulary": 8})
    mixed = pfllib(tmp_path / "mixed", (WORDS, (8, 4)), (WORDS / 2, (9, 4)))
    assert data.load(**mixed).inputs.dtype == np.float32


def test_an_empty_test_file_of_pfllib(tmp_path):
    settings = pfllib(tmp_path, (WORDS, (8, 4)), (WORDS, (9, 0)))
    loaded = data.load(**settings, validation_fraction=0.0)
    assert loaded.test.sizes.tolist() == [4, 0] and loaded.train.sizes.tolist() == [8, 9]
    settings = pfllib(tmp_path, (WORDS, (8, 4)), (WORDS, (0, 4)))
    with pytest.raises(UserError, match="train/1.npz has no example"):
        data.load(**settings)


# Images.


def paint(path, value=100, dtype=np.uint8, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 6), value, dtype)).save(path, **options)


def load(root, name="image_classes", **options):
    return data.SOURCES[name](str(root), **{"side": 6} | options)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
@pytest.mark.parametrize("value, expected", [(1000, 4), (4000, 16), (65535, 255), (300, 1)])
def test_16_bits_are_scaled_to_8(tmp_path, suffix, value, expected):
    paint(tmp_path / "cat" / f"deep{suffix}", value, np.uint16)
    assert np.unique(load(tmp_path).inputs).tolist() == [expected]


def test_32_bits_are_scaled_where_they_hold_16(tmp_path):
    paint(tmp_path / "cat" / "deep.tif", 4000, np.int32)
    assert np.unique(load(tmp_path).inputs).tolist() == [16]
    for value, dtype in ((70_000, np.int32), (-1, np.int32), (0.5, np.float32)):
        paint(tmp_path / "cat" / "deep.tif", value, dtype)
        with pytest.raises(UserError, match="deep.tif has pixels from .* 8 or 16 bits"):
            load(tmp_path)


@pytest.mark.parametrize("suffix", sorted(image_files._SUFFIXES - {".pbm"}))
def test_every_kind_of_image_is_read(tmp_path, suffix):
    paint(tmp_path / "cat" / f"one{suffix.upper()}")
    assert abs(load(tmp_path).inputs.astype(int) - 100).max() <= 2


@pytest.mark.parametrize("parts", [("train", "test"), ("Training", "valid", "test"), ("train",)])
def test_train_and_test_are_parts_and_not_classes(tmp_path, parts):
    for number, part in enumerate(parts):
        for label in ("cat", "dog", "eel"):
            paint(tmp_path / part / label / "1.png", 10 * number)
    pool = load(tmp_path)
    assert pool.class_names == ("cat", "dog", "eel")
    assert sorted(pool.targets.tolist()) == sorted([0, 1, 2] * len(parts))
    for domain in ("art", "photo"):
        paint(tmp_path / "domains" / domain / "train" / "cat" / "1.png")
        paint(tmp_path / "domains" / domain / "test" / "dog" / "1.png")
    pool = load(tmp_path / "domains", "image_domains")
    assert pool.class_names == ("cat", "dog")
    assert sorted(zip(pool.owners.tolist(), pool.targets.tolist(), strict=True)) == [
        *((0, 0), (0, 1), (1, 0), (1, 1))
    ]


def test_a_class_may_be_called_train(tmp_path):
    for label in ("bus", "train"):
        paint(tmp_path / label / "1.png")
    assert load(tmp_path).class_names == ("bus", "train")
    paint(tmp_path / "train" / "steam" / "2.png")
    assert load(tmp_path).targets.tolist() == [0, 1, 1]
    (tmp_path / "train" / "1.png").unlink()
    with pytest.raises(UserError, match="train, a directory of classes, beside bus"):
        load(tmp_path)


def test_hidden_and_empty_folders_are_no_classes(tmp_path):
    paint(tmp_path / "cat" / "1.png")
    paint(tmp_path / "dog" / "1.png")
    paint(tmp_path / ".ipynb_checkpoints" / "1.png")
    paint(tmp_path / "__MACOSX" / "cat" / "1.png")
    paint(tmp_path / "cat" / ".thumbnails" / "1.png")
    (tmp_path / "cat" / "._1.png").write_bytes(b"\0\5\26\7")  # what macOS leaves in archives
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "cat" / "folder.png").mkdir()
    (tmp_path / "empty").mkdir()
    pool = load(tmp_path)
    assert (pool.class_names, pool.targets.tolist()) == (("cat", "dog"), [0, 1])
    loaded = data.load(name="image_classes", dir=str(tmp_path), options={"side": 4},
                       partition="iid", num_clients=1)  # fmt: skip
    assert loaded.class_names == ("cat", "dog")


def test_images_without_a_suffix_are_detected_by_their_content(tmp_path):
    paint(tmp_path / "cat" / "1.png")
    (tmp_path / "cat" / "1.png").rename(tmp_path / "cat" / "1")
    paint(tmp_path / "dog" / "1.jpg")
    (tmp_path / "dog" / "LICENSE").write_text("free")
    assert load(tmp_path).targets.tolist() == [0, 1]


def test_links_that_lead_nowhere_are_named(tmp_path):
    paint(tmp_path / "cat" / "1.png")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "cat" / "2.png")
    with pytest.raises(UserError, match="2.png is not a regular file"):
        load(tmp_path)


def test_images_beyond_the_memory_of_the_machine(tmp_path, monkeypatch):
    paint(tmp_path / "cat" / "1.png")
    monkeypatch.setattr(image_files, "_memory", lambda: 1e6)
    with pytest.raises(UserError, match="1 images of 1000x1000 pixels need 0.0 GB, more than"):
        load(tmp_path, side=1000)
