"""Scores by the frequency of classes, and with a class mask."""

import importlib.util
import pathlib

import numpy as np

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "long_tail.py"


def load():
    """Returns the script as a module."""
    spec = importlib.util.spec_from_file_location("long_tail", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load()
# Cumulative fractions 0.5, 0.75, 0.85, 0.95 and 1, in the order of the classes 3, 0, 4, 1, 2.
COUNTS = np.array([25, 10, 5, 50, 10])


def test_groups_end_at_cumulative_fractions():
    found = {
        name: np.flatnonzero(classes).tolist() for name, classes in script.groups(COUNTS).items()
    }
    assert found == {"all": [0, 1, 2, 3, 4], "many": [0, 3], "medium": [1, 4], "few": [2]}


def test_accuracy_of_groups():
    targets = np.array([0, 0, 1, 2, 3, 4])
    predicted = np.array([0, 3, 1, 2, 3, 1])
    found = script.accuracy_of_groups(predicted, targets, COUNTS)
    np.testing.assert_allclose(
        [found[name] for name in ("all", "many", "medium", "few")], [4 / 6, 2 / 3, 1 / 2, 1]
    )
    none = script.accuracy_of_groups(predicted[:3], targets[:3], COUNTS)
    assert np.isnan(none["few"]) and none["medium"] == 1


def test_the_class_mask_excludes_classes_without_training_examples():
    outputs = [np.array([[0.0, 2, 1], [3, 0, 1]]), np.array([[0.0, -1, -2]])]
    present = np.array([[True, False, True], [False, True, True]])
    found = script.local_accuracy(outputs, [np.array([2, 0]), np.array([0])], present)
    assert found == {"local": 2 / 3, "masked": 2 / 3}
    # The first example changes from wrong to right, the last one from right to wrong.
    first = script.local_accuracy(outputs[:1], [np.array([2, 0])], present[:1])
    assert first == {"local": 1 / 2, "masked": 1.0}


def test_a_row_has_no_entry_for_a_missing_global_model():
    both = [{"local": 0.5, "masked": 0.6}, {"local": 0.7, "masked": 0.6}]
    assert script.row("fedper", both) == "| fedper | - | - | - | - | 60.0 ± 14.1 | 60.0 ± 0.0 |"
