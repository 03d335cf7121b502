"""Rankings among all items, against sorted lists of items."""

import importlib.util
import math
import pathlib

import numpy as np

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
