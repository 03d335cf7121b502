"""Rankings among all items, against sorted lists of items."""

import importlib.util
import math
import pathlib

import numpy as np
import pytest

from pfljax.errors import UserError

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "full_ranking.py"


def load():
    """Returns the script as a module."""
    spec = importlib.util.spec_from_file_location("full_ranking", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rankings = load()


def test_a_tested_item_is_ranked_among_all_items_that_the_client_does_not_have():
    draw = np.random.default_rng(0)
    scores = draw.permutation(50).astype(np.float32)
    own = draw.choice(50, 20, replace=False)
    tested = own[:15]
    found = rankings.hits_and_gains(rankings.beside_all(scores, own, tested))
    for item, (hit, gain) in zip(tested, found.T, strict=True):
        among = sorted({item, *range(50)} - (set(own) - {item}), key=lambda i: -scores[i])
        ahead = among.index(item)
        assert hit == (ahead < 10)
        assert math.isclose(gain, 1 / math.log2(2 + ahead) if ahead < 10 else 0, rel_tol=1e-6)
    assert 0 < found[0].mean() < 1


def test_more_rankings_than_a_block_are_those_one_by_one():
    scores = np.random.default_rng(1).integers(0, 30, size=(130, 40)).astype(np.float32)
    one_by_one = [rankings.hits_and_gains(row[None]) for row in scores]
    np.testing.assert_array_equal(rankings.hits_and_gains(scores), np.concatenate(one_by_one, 1))


def test_the_popularity_of_an_item_is_the_number_of_its_training_examples():
    dataset = rankings.FederatedDataset(
        name="toy",
        # User and item; items 2 and 1 of client 0, items 2 and 0 of client 1, who tests item 0.
        inputs=np.array([[[0, 2], [0, 3]], [[0, 1], [0, 3]], [[1, 2], [1, 3]], [[1, 0], [1, 3]]]),
        targets=np.zeros(4, np.int32),
        train=rankings.Split(np.array([0, 2]), np.array([2, 1])),
        validation=rankings.Split(np.array([2, 3]), np.array([0, 0])),
        test=rankings.Split(np.array([2, 3]), np.array([0, 1])),
        num_classes=0,
        task="ranking",
        vocabulary=(2, 4),
    )
    score = rankings.popularity(dataset)
    assert score(1, np.array([3]), np.array([[0, 1, 2, 3]])).tolist() == [[0, 1, 2, 0]]
    # Item 0 is behind item 1 and equal to item 3; item 2 is the client's own.
    gain = 1 / math.log2(2 + 1.5)
    np.testing.assert_allclose(
        rankings.evaluate(dataset, score).means, [1, 1 / math.log2(2 + 0.5), 1, gain], rtol=1e-6
    )


def histories():
    """Returns two clients who each choose between 2 of 6 items, after a history of one item.

    Client 0 trains on item 0, validates on item 1 and tests item 2; client 1 on 3, 4 and 5.
    """
    films = np.arange(1, 7)
    rated = [[[0, 0, 0]], *([[film, level, 1] for film in films] for level in range(3))]
    chosen, others = np.arange(6), np.array([5, 5, 5, 0, 0, 0])
    history = np.array([0, 7, 8, 0, 16, 17])  # items 0 and 1 with the rating 1, 3 and 4 with 2
    return rankings.FederatedDataset(
        name="toy",
        inputs=np.stack([1 + chosen, 1 + others, history], axis=1).astype(np.int32),
        targets=np.ones(6, np.float32),
        train=rankings.Split(np.array([0, 3]), np.array([1, 1])),
        validation=rankings.Split(np.array([1, 4]), np.array([1, 1])),
        test=rankings.Split(np.array([2, 5]), np.array([1, 1])),
        num_classes=1,
        task="recommendation",
        vocabulary=(7, 3, 2),
        items=np.concatenate(rated).astype(np.int32),
    )


def test_items_take_the_slots_of_the_choices_and_the_history_stays():
    dataset = histories()
    choices = rankings.Choices(dataset)
    assert choices.count == 6 and choices.has_history
    assert choices.of(np.array([0, 5])).tolist() == [[0, 5], [5, 0]]
    inputs = choices.replaced(np.array([2, 5]), np.array([[3, 4], [0, 1]]))
    assert inputs[..., :2].tolist() == [[[4, 0], [5, 0], [2, 1]], [[1, 0], [2, 0], [5, 2]]]
    assert dataset.items[1:7, 0].tolist() == [1, 2, 3, 4, 5, 6], "the data set is unchanged"


@pytest.mark.parametrize("split", ["test", "validation"])
def test_rankings_with_a_history_depend_on_the_example(split):
    dataset = histories()

    def score(client, rows, items):
        """Rows 1 and 2 prefer small numbers, and rows 4 and 5 those near to item 2."""
        return -np.where(rows[:, None] < 3, np.abs(items - 0.4), np.abs(items - 2.1))

    found = rankings.evaluate(dataset, score, split)
    # Items of the splits up to the ranked one are the client's own.
    own = {"test": [{0, 1, 2}, {3, 4, 5}], "validation": [{0, 1}, {3, 4}]}[split]
    for client, (row, chosen) in enumerate(zip((2, 5), found.tested, strict=True)):
        scores = score(client, np.array([row]), np.arange(6)[None])[0]
        rivals = set(range(6)) - own[client]
        before = sum(scores[item] > scores[chosen] for item in rivals)
        assert math.isclose(found.sums[client, 3], 1 / math.log2(2 + before), rel_tol=1e-6)
    assert found.counts.tolist() == [1, 1]
    assert found.tested.tolist() == ([2, 5] if split == "test" else [1, 4])


def test_the_gain_is_paired_over_clients_and_refuses_other_items():
    counts = np.ones(40, int)
    base = np.linspace(0, 1, 40)
    ranked = [
        rankings.Ranked(np.stack([base, base, base, base + more], axis=1), counts, np.arange(40))
        for more in (0.0, 0.1, 0.3)
    ]
    assert rankings.gain(ranked[1:], ranked[:1]) == "+20.00 [+20.00, +20.00]"
    other = ranked[1]._replace(tested=np.arange(1, 41))
    with pytest.raises(UserError, match="test the same items"):
        rankings.gain([other], ranked[:1])
