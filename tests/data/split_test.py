"""Splits: nothing is lost or shared, labels keep their shares, unseen clients come last."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfljax.data import partition, server, sources, split
from pfljax.errors import UserError

SPLITS = ("train", "validation", "test")


def pool(labels):
    """Examples whose only input is their row number, so that they can be traced."""
    rows = np.arange(len(labels))[:, None]
    return sources.Examples("toy", rows, np.asarray(labels, np.int32), int(max(labels)) + 1)


def rows_of(data, name, client):
    offsets, sizes = getattr(data, name)
    return data.inputs[offsets[client] : offsets[client] + sizes[client], 0]


def assemble(labels, clients, **changes):
    arguments = dict(test_fraction=0.25, validation_fraction=0.2, unseen_fraction=0.0, seed=0)
    return split.assemble(pool(labels), clients, **arguments | changes)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
def test_stratified_choice_keeps_shares_to_within_one(labels, share, seed):
    labels = np.array(labels)
    count = int(share * len(labels))
    chosen = split.stratified_choice(labels, count, np.random.default_rng(seed))
    assert chosen.sum() == count
    for label in np.unique(labels):
        exact = np.sum(labels == label) * count / len(labels)
        assert abs(np.sum(chosen[labels == label]) - exact) < 1


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=12, max_size=80),
    st.integers(1, 6),
    st.floats(0.01, 0.99),
    st.floats(0, 0.99),
    st.floats(0, 0.99),
    st.integers(0, 2**32),
)
def test_every_example_goes_to_one_split_of_its_client(
    labels, num_clients, test_fraction, validation_fraction, unseen_fraction, seed
):
    clients = partition.iid(np.array(labels), num_clients, seed)
    if num_clients == 1:
        unseen_fraction = 0.0
    data = assemble(
        labels,
        clients,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        unseen_fraction=unseen_fraction,
        seed=seed,
    )
    assert data.num_clients == num_clients
    assert 0 <= data.num_unseen < num_clients
    np.testing.assert_array_equal(data.targets, np.array(labels)[data.inputs[:, 0]])
    assert data.train.sizes.min() >= 1 and data.test.sizes.min() >= 1
    # One after the other: training, validation, test, then the next client.
    sizes = np.stack([getattr(data, name).sizes for name in SPLITS], axis=1).ravel()
    offsets = np.stack([getattr(data, name).offsets for name in SPLITS], axis=1).ravel()
    np.testing.assert_array_equal(offsets, np.cumsum(sizes) - sizes)
    assert sizes.sum() == len(labels)
    held = [
        tuple(sorted(np.concatenate([rows_of(data, name, client) for name in SPLITS])))
        for client in range(num_clients)
    ]
    assert sorted(held) == sorted(tuple(rows) for rows in clients)
    # Participants keep their order, and so do the unseen clients after them.
    order = [[tuple(rows) for rows in clients].index(rows) for rows in held]
    assert order[: data.num_participants] == sorted(order[: data.num_participants])
    assert order[data.num_participants :] == sorted(order[data.num_participants :])


def test_fractions_are_those_asked_for():
    labels = np.tile(np.arange(4), 50)
    data = assemble(labels, np.split(np.arange(200), 2))
    assert data.test.sizes.tolist() == [25, 25]
    assert data.validation.sizes.tolist() == [15, 15]
    assert data.train.sizes.tolist() == [60, 60]
    assert data.train.offsets.dtype == data.train.sizes.dtype == np.int32
    assert assemble(labels, [np.arange(200)], validation_fraction=0.0).validation.sizes == [0]


def test_every_split_of_a_client_has_its_mixture_of_labels():
    labels = np.repeat([0, 1, 2], [120, 60, 20])
    data = assemble(labels, [np.arange(200)])
    for name, expected in zip(SPLITS, ([72, 36, 12], [18, 9, 3], [30, 15, 5]), strict=True):
        assert np.bincount(labels[rows_of(data, name, 0)]).tolist() == expected


def test_rows_are_shuffled_within_a_split():
    data = assemble(np.repeat(np.arange(4), 50), [np.arange(200)])
    assert len(np.unique(data.targets[:20])) > 1


def test_unseen_clients_are_chosen_by_seed_and_placed_last():
    labels = np.tile(np.arange(2), 50)
    clients = np.split(np.arange(100), 10)

    def unseen(seed):
        data = assemble(labels, clients, unseen_fraction=0.3, seed=seed)
        assert data.num_unseen == 3 and data.num_participants == 7
        return [rows_of(data, "train", client)[0] // 10 for client in (7, 8, 9)]

    assert unseen(0) == unseen(0)
    assert len({tuple(unseen(seed)) for seed in range(8)}) > 1
    assert assemble(labels, clients, unseen_fraction=0.01).num_unseen == 1


def test_the_split_does_not_depend_on_who_is_unseen():
    labels = np.tile(np.arange(2), 50)
    clients = np.split(np.arange(100), 10)

    def tests(unseen_fraction):
        data = assemble(labels, clients, unseen_fraction=unseen_fraction)
        return {tuple(rows_of(data, "test", client)) for client in range(10)}

    assert tests(0.0) == tests(0.5)


def test_a_client_too_small_is_named():
    with pytest.raises(UserError, match="Client 1 has 1 examples"):
        assemble([0, 1, 0], [np.array([0, 1]), np.array([2])])
    assemble([0, 1, 0, 1], [np.array([0, 1]), np.array([2, 3])], test_fraction=0.9)


@pytest.mark.parametrize(
    "changes",
    [
        {"test_fraction": 0.0},
        {"test_fraction": 1.0},
        {"test_fraction": "half"},
        {"validation_fraction": 1.0},
        {"validation_fraction": -0.1},
        {"validation_fraction": float("nan")},
        {"unseen_fraction": 1.0},
        {"seed": -1},
        {"seed": 0.5},
    ],
)
def test_arguments_that_make_no_sense(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        assemble([0, 1, 0, 1], [np.arange(4)], **changes)


def test_the_only_client_cannot_be_unseen():
    with pytest.raises(UserError, match="only one"):
        assemble([0, 1, 0, 1], [np.arange(4)], unseen_fraction=0.5)


def test_the_last_example_is_tested_and_the_one_before_it_validates():
    in_time = pool([0, 1] * 6)._replace(time_gap=0)
    clients = [np.arange(5), np.arange(5, 12)]
    arguments = dict(test_fraction=0.5, validation_fraction=0.5, unseen_fraction=0.0, seed=3)
    data = split.assemble(in_time, clients, split="last_two", **arguments)
    for client, rows in enumerate(clients):
        parts = [rows_of(data, name, client).tolist() for name in SPLITS]
        assert parts == [rows[:-2].tolist(), [rows[-2]], [rows[-1]]]
    apart = split.last_two(np.arange(7), client=0, gap=2)
    assert [part.tolist() for part in apart] == [[0], [3], [6]]
    with pytest.raises(UserError, match="Client 1 has 2 examples, .* use data.min_size=3 or more"):
        split.assemble(in_time, [np.arange(5), np.arange(2)], split="last_two", **arguments)
    with pytest.raises(UserError, match="in no order of time"):
        split.assemble(pool([0, 1] * 6), clients, split="last_two", **arguments)


def test_examples_of_one_item_are_in_one_part():
    """A pair of answers has inputs of its own; the pairs of a question are kept together."""
    question = np.repeat(np.arange(20), 3)
    examples = pool(np.zeros(60, int))._replace(item_of=question)
    clients = [np.arange(0, 60, 2), np.arange(1, 60, 2)]
    fractions = {"test_fraction": 0.3, "validation_fraction": 0.2, "unseen_fraction": 0.0}
    data = split.assemble(examples, clients, seed=0, split="by_item", **fractions)
    of_parts = [
        {int(question[row]) for client in (0, 1) for row in rows_of(data, name, client)}
        for name in SPLITS
    ]
    assert [len(of) for of in of_parts] == [11, 3, 6]
    assert set.union(*of_parts) == set(range(20))


def test_the_server_keeps_the_items_of_the_other_examples():
    examples = pool(np.zeros(40, int))._replace(item_of=np.arange(40) + 100)
    kept, held = server.hold_out(examples, 0.25, seed=0)
    assert kept.item_of.tolist() == (kept.inputs[:, 0] + 100).tolist() and len(held.targets) == 10
