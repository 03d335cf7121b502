"""Accuracies of the most frequent labels, counted by hand."""

import importlib.util
import pathlib

import numpy as np

from pfljax.data import FederatedDataset, Split

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "majority.py"


def load():
    """Returns the script as a module."""
    spec = importlib.util.spec_from_file_location("majority", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load()


def dataset(**changes):
    """Two clients with three training and two test examples of four items, and a held-out one."""
    items = [0, 1, 2, 2, 3] + [1, 2, 0, 0, 2] + [0, 1, 2, 3, 3]
    labels = [1, 1, 0, 1, 0] + [0, 1, 1, 0, 1] + [0] * 5
    starts = np.array([0, 5, 10], np.int32)
    threes, none = np.full(3, 3, np.int32), np.zeros(3, np.int32)
    made = FederatedDataset(
        name="toy",
        inputs=np.array(items, np.int32),
        targets=np.array(labels, np.int32),
        train=Split(starts, threes),
        validation=Split(starts + 3, none),
        test=Split(starts + 3, np.full(3, 2, np.int32)),
        num_classes=2,
        items=np.eye(4),
        num_unseen=1,
    )
    return made._replace(**changes)


def test_labels_are_counted():
    found = script.accuracies(dataset())
    # Four of the six training labels of participating clients are 1.
    np.testing.assert_array_equal(found["all"], [0.5, 0.5])
    np.testing.assert_array_equal(found["client"], [0.5, 0.5])
    # The other client says 1 of item 2, and 1 of item 0 but 0 of item 2; item 3 has no label.
    np.testing.assert_array_equal(found["item"], [0.5, 0.0])


def test_held_out_clients_are_tested_with_labels_of_the_others():
    found = script.accuracies(dataset(), unseen=True)
    # It says 0 of the item 3, which no participating client trains on; the most frequent label of
    # those clients is 1, its own 0.
    assert {rule: values.tolist() for rule, values in found.items()} == {
        "all": [0.0],
        "client": [1.0],
        "item": [0.0],
    }


def test_clients_without_test_examples_and_items():
    size = np.array([2, 0, 2], np.int32)
    tests = Split(dataset().test.offsets, size)
    found = script.accuracies(dataset(test=tests, items=None, targets=dataset().targets * 0))
    assert {rule: values.tolist() for rule, values in found.items()} == {
        "all": [1.0],
        "client": [1.0],
    }
