"""CoPL on a few users of two kinds, and the accuracies of users that the script writes."""

import importlib.util
import pathlib

import numpy as np
import pytest

from pfljax import data
from pfljax.errors import UserError
from pfljax.ops import copl

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "copl.py"


def load():
    """Returns the script as a module."""
    spec = importlib.util.spec_from_file_location("copl", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load()
SETTINGS = copl.Settings(size=16, steps=120, every=20)


def users(**changes):
    options = {"users": 120, "prompts": 5, "width": 6, "rewards": 2, "alpha": 0.01}
    arguments = {"validation_fraction": 0.2, "unseen_fraction": 0.2, **changes}
    return data.load(
        name="simulated_preferences", partition="natural", options=options, **arguments
    )


def test_pairs_name_distinct_answers():
    dataset = users()
    pairs, features = script.pairs_of(dataset)
    assert len(features) == 40  # all answers of the five prompts
    for name, of in pairs.items():
        split = getattr(dataset, name)
        assert len(of.user) == split.sizes.sum()
        client = int(np.argmax(split.sizes > 0))
        rows = slice(split.offsets[client], split.offsets[client] + split.sizes[client])
        np.testing.assert_allclose(
            features[of.items[of.user == client]], dataset.inputs[rows], rtol=1e-5
        )


def test_users_of_an_answer_are_counted_once():
    pairs = copl.Pairs(np.array([0, 0, 1]), np.array([[0, 1], [0, 2], [2, 3]]))
    assert script.users_of_answers(pairs, 5).tolist() == [1, 1, 2, 1, 0]


def test_users_of_two_kinds_are_distinguished():
    """Known and new users are predicted; a reward common to all could not do both kinds."""
    dataset = users()
    found = script.evaluate(dataset, [0.01], SETTINGS)
    assert set(found.rates.values()) == {0.01} and found.shared == found.known == 40
    assert list(found.correct) == ["CoPL, graph", "CoPL, one expert", "CoPL, all experts"]
    known = found.client < dataset.num_participants
    for correct in found.correct.values():
        assert min(correct[known].mean(), correct[~known].mean()) > 0.85


def test_accuracies_of_users_are_written(tmp_path):
    dataset = users(unseen_fraction=0.0)
    found = script.evaluate(dataset, [0.01], SETTINGS._replace(steps=20))
    script.write(tmp_path, dataset, found, 3)
    with np.load(tmp_path / "CoPL, graph" / "seed_3" / "clients.npz") as arrays:
        weighted = arrays["personal_test_accuracy"] * arrays["test_size"]
        np.testing.assert_array_equal(arrays["train_size"], dataset.train.sizes)
    assert weighted.sum() == pytest.approx(found.correct["CoPL, graph"].sum())


def test_validation_pairs_are_needed():
    with pytest.raises(UserError, match="set config.data.validation_fraction"):
        script.evaluate(users(validation_fraction=0.0), [0.01], SETTINGS)
