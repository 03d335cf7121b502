"""Natural clients and splits in time: owners keep what is theirs, and tests come last."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfljax import data
from pfljax.data import chronology, split
from pfljax.errors import UserError


def pool(owners, labels=None, **changes):
    """Examples whose only input is their row number."""
    labels = np.zeros(len(owners), np.int32) if labels is None else np.asarray(labels)
    rows = np.arange(len(owners))[:, None]
    fields = dict(name="toy", inputs=rows, targets=labels, num_classes=int(labels.max()) + 1)
    return data.Examples(**fields | {"owners": np.asarray(owners)} | changes)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 9), min_size=1, max_size=60), st.integers(1, 8))
def test_owners_keep_their_rows_in_order(owners, min_size):
    owners = np.array(owners)
    counts = {owner: int(np.sum(owners == owner)) for owner in np.unique(owners)}
    if max(counts.values()) < min_size:
        with pytest.raises(UserError, match=f"use min_size={max(counts.values())} or less"):
            data.natural(owners, min_size)
        return
    clients = data.natural(owners, min_size)
    kept = [owner for owner, count in counts.items() if count >= min_size]
    assert [owners[rows[0]] for rows in clients] == kept
    for owner, rows in zip(kept, clients, strict=True):
        np.testing.assert_array_equal(rows, np.flatnonzero(owners == owner))


def test_some_owners_are_drawn_by_the_seed():
    owners = np.repeat(np.arange(8), [3, 4, 1, 5, 3, 6, 3, 3])  # owner 2 has too few

    def drawn(number, seed):
        return [int(owners[rows[0]]) for rows in data.natural(owners, 3, number, seed)]

    assert drawn(0, 0) == drawn(7, 3) == [0, 1, 3, 4, 5, 6, 7]
    some = [drawn(4, seed) for seed in range(20)]
    assert all(len(set(one)) == 4 and one == sorted(one) for one in some)
    assert {owner for one in some for owner in one} == {0, 1, 3, 4, 5, 6, 7}
    assert drawn(4, 5) == drawn(4, 5)
    with pytest.raises(UserError, match="use data.num_owners=7 or less"):
        data.natural(owners, 3, 8)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=5, max_size=80),
    st.floats(0.01, 0.99),
    st.floats(0, 0.99),
    st.integers(0, 3),
)
def test_a_split_in_time_separates_the_parts(labels, test_fraction, validation_fraction, gap):
    labels = np.array(labels)
    parts = chronology.split_in_time(labels, test_fraction, validation_fraction, gap)
    train, validation, test = parts
    assert len(train) >= 1 and len(test) >= 1
    rows = np.concatenate(parts)
    assert len(np.unique(rows)) == len(rows)
    for part in parts:
        np.testing.assert_array_equal(part, np.sort(part))
    for label in np.unique(labels):
        rows = [part[labels[part] == label] for part in parts]
        for before, after in ((0, 1), (1, 2), (0, 2)):
            if len(rows[before]) and len(rows[after]):
                assert rows[before].max() + gap < rows[after].min()


def test_the_test_part_is_the_last_of_every_label():
    labels = np.repeat([1, 0, 1], [8, 8, 8])
    examples = pool(np.zeros(24, int), labels, time_gap=1)
    loaded = split.assemble(
        examples, [np.arange(24)], test_fraction=0.25, validation_fraction=0.25,
        unseen_fraction=0.0, seed=0,
    )  # fmt: skip
    start = loaded.test.offsets[0]
    assert loaded.inputs[start:, 0].tolist() == [14, 15, 20, 21, 22, 23]


def test_text_and_regressions_are_cut_as_a_whole():
    targets = np.linspace(0, 1, 20, dtype=np.float32)
    examples = pool(np.zeros(20, int), task="regression", time_gap=0)
    examples = examples._replace(targets=targets, num_classes=0)
    loaded = split.assemble(
        examples, [np.arange(20)], test_fraction=0.25, validation_fraction=0.2,
        unseen_fraction=0.0, seed=0,
    )  # fmt: skip
    assert loaded.inputs[:, 0].tolist() == list(range(20))
    assert (loaded.train.sizes, loaded.validation.sizes, loaded.test.sizes) == ([12], [3], [5])
    assert loaded.class_counts().shape == (1, 0)
    assert loaded.task == "regression" and loaded.targets.dtype == np.float32


def test_a_client_too_small_for_the_gap_is_reported():
    with pytest.raises(UserError, match="Client 0 has 2 examples .* 1 apart"):
        split.assemble(
            pool([0, 0], time_gap=1), [np.arange(2)], test_fraction=0.25, validation_fraction=0.0,
            unseen_fraction=0.0, seed=0,
        )  # fmt: skip


@pytest.fixture
def named(monkeypatch):
    """Makes a pool with owners known to `load` as 'toy'; its option is the number of owners."""

    def load_toy(data_dir="", *, owners=3):
        numbers = np.arange(60) % owners
        return pool(numbers, np.arange(60) // 2 % 4)

    monkeypatch.setitem(data.SOURCES, "toy", load_toy)


def test_load_assigns_examples_to_their_owners(named):
    loaded = data.load(name="toy", partition="natural")
    assert loaded.num_clients == 3
    for client in range(3):
        rows = loaded.inputs[loaded.train.offsets[client] :][: loaded.train.sizes[client], 0]
        assert set(rows % 3) == {client}
    assert data.load(name="toy", partition="natural", options={"owners": 6}).num_clients == 6
    with pytest.raises(UserError, match="min_size=5 or less"):
        data.load(name="toy", partition="natural", options={"owners": 12})
    fewer = data.load(name="toy", partition="natural", options={"owners": 12}, min_size=5)
    assert fewer.num_clients == 12


@pytest.mark.parametrize("partition", ["iid", "pathological", "dirichlet"])
def test_owners_do_not_affect_other_partitions(named, partition):
    loaded = data.load(name="toy", partition=partition, num_clients=4, alpha=1.0, min_size=3)
    assert loaded.num_clients == 4 and len(loaded.targets) == 60


def test_an_unknown_option_is_named(named):
    with pytest.raises(UserError, match="did you mean 'owners'"):
        data.load(name="toy", options={"owner": 3})


def test_labels_of_other_targets():
    values = np.arange(100, dtype=np.float32)[::-1]
    examples = pool(np.zeros(100, int))._replace(targets=values, task="regression")
    assert np.bincount(examples.labels).tolist() == [10] * 10
    assert examples.labels[0] == 9
    text = pool(np.zeros(3, int))._replace(targets=np.ones((3, 5), np.int32), task="next_token")
    assert text.labels.tolist() == [0, 0, 0]


def test_describe_includes_the_kind_of_targets(named):
    values = np.arange(40, dtype=np.float32)
    examples = pool(np.arange(40) % 2)._replace(
        targets=values, num_classes=0, task="regression", target_mean=19.5, target_std=11.5
    )
    loaded = split.assemble(
        examples, data.natural(examples.owners), test_fraction=0.25, validation_fraction=0.1,
        unseen_fraction=0.0, seed=0,
    )  # fmt: skip
    text = data.describe(loaded)
    assert "with targets 19.5 +- 11.5" in text and "classes" not in text


@pytest.mark.parametrize("kind", ["regression", "next_token", "standardized"])
def test_every_kind_survives_the_file(tmp_path, kind):
    examples = pool(np.arange(40) % 2)
    if kind == "regression":
        examples = examples._replace(
            targets=np.arange(40, dtype=np.float32), num_classes=0, task=kind, target_std=2.5
        )
    elif kind == "next_token":
        targets = np.arange(80, dtype=np.int32).reshape(40, 2) % 7
        examples = examples._replace(
            inputs=targets[::-1], targets=targets, num_classes=7, task=kind, vocabulary=(7,)
        )
    else:
        examples = examples._replace(mean=np.array([3.0]), std=np.array([2.0]))
    saved = split.assemble(
        examples, data.natural(examples.owners), test_fraction=0.25, validation_fraction=0.1,
        unseen_fraction=0.0, seed=0,
    )  # fmt: skip
    file = str(tmp_path / "data.npz")
    data.save_npz(file, saved)
    loaded = data.load_npz(file)
    for field in saved._fields:
        np.testing.assert_equal(getattr(loaded, field), getattr(saved, field))
    assert loaded.targets.dtype == saved.targets.dtype
