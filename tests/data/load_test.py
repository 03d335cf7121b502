"""The entry that programs call: every name and partition, and a hint for every slip."""

import hashlib
import pathlib
import re

import numpy as np
import pytest

from pfljax import data
from pfljax.errors import UserError


@pytest.mark.parametrize("partition", [name for name in data.PARTITIONS if name != "natural"])
def test_digits(partition):
    loaded = data.load(name="digits", partition=partition, unseen_fraction=0.2)
    for split, size in (("train", 1), ("validation", 1), ("test", 2)):
        assert getattr(loaded, split).sizes.min() >= size
    # Tested on the labels that it trains on: within each client, every label keeps its share.
    for client in range(20):
        train, test = (
            np.bincount(loaded.targets[offsets[client] :][: sizes[client]], minlength=10)
            for offsets, sizes in (loaded.train, loaded.test)
        )
        held = loaded.train.sizes + loaded.validation.sizes + loaded.test.sizes
        assert loaded.test.sizes[client] == round(0.25 * held[client])
        assert np.all(np.abs(test - train / train.sum() * test.sum()) < 2)
    assert (loaded.num_clients, loaded.num_unseen, loaded.num_participants) == (20, 4, 16)
    sizes = [split.sizes for split in (loaded.train, loaded.validation, loaded.test)]
    assert np.sum(sizes) == len(loaded.targets) == 1797
    assert loaded.class_counts().sum() == sizes[0].sum()
    classes = (loaded.class_counts() > 0).sum(axis=1)
    if partition == "pathological":
        assert classes.max() == 2
    elif partition == "iid":
        assert classes.min() >= 8


def test_the_default_data_set_of_digits_never_changes():
    """Published numbers depend on it: a change here must be a new keyword, not a new golden."""
    loaded = data.load(name="digits", unseen_fraction=0.1)
    digest = hashlib.sha256()
    for array in (loaded.inputs, loaded.targets, *loaded.train, *loaded.validation, *loaded.test):
        digest.update(array.tobytes())
    assert digest.hexdigest()[:16] == "fb87a37c51466b54"


def test_the_same_settings_give_the_same_data():
    settings = dict(name="digits", partition="dirichlet", seed=5)
    one, two = data.load(**settings), data.load(**settings)
    np.testing.assert_array_equal(one.inputs, two.inputs)
    other = data.load(**settings | {"seed": 6})
    assert not np.array_equal(one.inputs, other.inputs)


@pytest.mark.parametrize("partition", data.PARTITIONS)
def test_given_clients_are_kept_whatever_the_partition(tmp_path, partition):
    original = data.load(name="digits", num_clients=7, partition="iid")
    file = str(tmp_path / "digits.npz")
    data.save_npz(file, original)
    loaded = data.load(name="npz", dir=file, partition=partition, num_clients=3)
    np.testing.assert_array_equal(loaded.train.offsets, original.train.offsets)


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    data.save_npz("~/digits.npz", data.load(name="digits", partition="iid"))
    assert (tmp_path / "digits.npz").exists()
    assert data.load(name="npz", dir="~/digits.npz", partition="natural").name == "digits"


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(name="digit"), "did you mean 'digits'?"),
        (dict(name="fashion-mnist"), "did you mean 'fashion_mnist'?"),
        (dict(name="zzz"), "Choose one of digits, mnist, fashion_mnist, "),
        (dict(name="digits", partition="dirichelt"), "did you mean 'dirichlet'?"),
        (dict(name="digits", partition="natural"), "no natural clients"),
        (dict(name="npz"), "data.dir"),
        (dict(name="mnist", dir=300 * "x"), "cannot be read (File name too long): check data.dir"),
        (dict(name="pfllib", dir=300 * "x"), "cannot be read (File name too long)"),
        (dict(name="image_classes", dir=300 * "x"), "cannot be read (File name too long)"),
        (dict(name="pfllib"), "data.dir"),
        (dict(name="digits", alpha=-1.0), "alpha"),
        (dict(name="digits", num_clients=0), "num_clients"),
        (dict(name="digits", test_fraction=2.0), "test_fraction"),
        (dict(name="digits", partition="iid", num_clients=1000), "one to train"),
        (dict(name="digits", seed=-3), "seed"),
        (dict(name="digits", partition="shard"), "did you mean 'shards'?"),
        (dict(name="digits", partition="shards", shards_per_client=0), "shards_per_client"),
        (dict(name="digits", partition="groups", num_groups=11), "num_groups"),
        (dict(name="digits", partition="groups", group_by="superclass"), "data.group_by=class"),
        (dict(name="digits", group_by="superclas"), "did you mean 'superclass'?"),
        (dict(name="digits", partition="quantity_log_normal", size_sigma=-1.0), "size_sigma"),
        (dict(name="digits", partition="quantity_power_law", size_exponent=-1.0), "size_exponent"),
        (dict(name="digits", feature_shift="turn"), "Unknown data.feature_shift"),
        (dict(name="digits", concept_shift="permute"), "Unknown data.concept_shift"),
        (dict(name="digits", feature_shift="noise", shift_strength=2.0), "shift_strength"),
    ],
)
def test_slips(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        data.load(**settings)


def test_groups_by_superclass(monkeypatch):
    def load_toy(data_dir=""):
        digits = data.load_digits()
        return digits._replace(superclasses=np.arange(10) % 2)

    monkeypatch.setitem(data.SOURCES, "toy", load_toy)
    loaded = data.load(
        name="toy", partition="groups", group_by="superclass", num_groups=2, num_clients=6
    )
    held = loaded.class_counts() > 0
    for client in range(6):
        assert len(set(np.flatnonzero(held[client]) % 2)) == 1
    np.testing.assert_array_equal(held[:2], held[2:4])


def test_describe():
    loaded = data.load(name="digits", partition="pathological", unseen_fraction=0.1)
    text = data.describe(loaded)
    assert "digits: 20 clients (2 unseen), 1797 examples" in text
    assert "training classes per client 2 / 2 / 2" in text
    assert f"test {loaded.test.sizes.sum()} examples" in text


def test_all_that_is_exported_exists():
    assert all(hasattr(data, name) for name in data.__all__)
    assert set(data.DATASETS) == {*data.SOURCES, "pfllib", "npz", "store", "python"}


def test_the_readme_has_a_row_for_every_data_set():
    readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    table = readme.split("| name | classes |")[1].split("\n\n")[0]
    rows = [line.split("|") for line in table.splitlines()[2:]]
    assert {len(row) for row in rows} == {10}
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row[1])]
    assert sorted(named) == sorted(set(data.DATASETS) - {"python"})  # which is passed, not loaded
