"""Base and new classes: towers with the names of some classes, and the table."""

import importlib.util
import pathlib

import jax
import numpy as np

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "base_to_novel.py"


def load():
    """Returns the script as a module."""
    spec = importlib.util.spec_from_file_location("base_to_novel", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


study = load()


def test_towers_with_fewer_names_have_these_classes_columns():
    whole, some = study.model_of(range(10)), study.model_of((7, 2))
    params = whole.init(jax.random.key(0))
    features = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    expected = whole.head(params, features)[:, (7, 2)]
    np.testing.assert_allclose(some.head(params, features), expected, rtol=1e-5, atol=1e-5)


def test_accuracies_are_among_the_names_of_their_classes():
    model = study.model_of(range(10))
    params = model.init(jax.random.key(0))
    images = np.random.default_rng(1).uniform(size=(60, 8, 8, 1)).astype(np.float32)
    labels = np.arange(60) % 10
    logits = np.asarray(model.head(params, model.features(params, images)))
    assert study.classes_of(4) == (0, 4, 5)
    expected = []
    for classes in ((0, 4, 5), (1, 2, 3), (6, 7, 8, 9)):
        rows = [i for i in range(60) if labels[i] in classes]
        chosen = [max(classes, key=lambda c, i=i: logits[i, c]) for i in rows]
        expected.append(np.mean(labels[rows] == chosen))
    np.testing.assert_allclose(study.accuracies(params, None, 4, images, labels), expected)
    assert 0 < min(expected) and max(expected) < 1


def test_the_table_has_the_harmonic_mean():
    seeds = [
        {("fedpgp", "0.1"): np.array([[0.4, 0.5, 0.6], [0.6, 0.5, 0.2]])},
        {("fedpgp", "0.1"): np.array([[0.5, 0.5, 0.2], [0.5, 0.5, 0.0]])},
    ]
    (*_, row) = study.table(seeds).splitlines()
    assert row == "| fedpgp | 0.1 | 50.0 | 50.0 | 25.0 | 37.5 |"
