"""The AUC of scores for classes that no client has, on a data set of a few examples."""

import importlib.util
import pathlib

import numpy as np
import pytest

from pfljax.data import Split
from pfljax.errors import UserError

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "unseen_classes.py"


def load():
    """Returns the script as a module."""
    spec = importlib.util.spec_from_file_location("unseen_classes", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


unseen = load()
POOL = unseen.Examples("toy", np.arange(6)[:, None], np.array([0, 2, 1, 2, 0, 1], np.int32), 3)


def test_the_removed_classes_are_in_no_pool():
    kept, removed = unseen.split_classes(POOL, [1])
    assert kept.inputs[:, 0].tolist() == [0, 1, 3, 4] and kept.targets.tolist() == [0, 2, 2, 0]
    assert removed[:, 0].tolist() == [2, 5]
    for classes, message in (([3], "--classes has 3"), ([0, 1, 2], "leave others"), ([], "some")):
        with pytest.raises(UserError, match=message):
            unseen.split_classes(POOL, classes)


def test_a_mean_auc_counts_pairs_and_keeps_held_out_clients_apart():
    none = np.zeros(3, np.int32)
    dataset = unseen.FederatedDataset(
        name="toy",
        inputs=POOL.inputs,
        targets=POOL.targets,
        train=Split(none, none),
        validation=Split(none, none),
        test=Split(none, np.array([1, 3, 2], np.int32)),
        num_classes=3,
        num_unseen=1,
    )
    others = np.array([1.0, 2.0])
    scores = [
        (np.array([1.5]), others),  # one of two pairs
        (np.array([3.0, 2.0, 0.0]), others),  # 2, 1.5 and 0 of two pairs each
        (np.array([4.0, 0.0]), others),  # 2 and 0
    ]
    found = unseen.auc_of_clients(dataset, scores)
    np.testing.assert_allclose(found, [(1 * 0.5 + 3 * 3.5 / 6) / 4, 0.5])
    taking_part = dataset._replace(num_unseen=0)
    np.testing.assert_allclose(unseen.auc_of_clients(taking_part, scores)[0], (2.25 + 2 * 0.5) / 6)
