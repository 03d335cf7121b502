"""Figures of recorded judges: by hand on made-up ones, and PRISM's to the third decimal."""

import importlib.util
import os
import pathlib

import numpy as np
import pytest

from pfljax.data.sources import preferences
from pfljax.metrics import bootstrap

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "judge.py"


def load():
    """Returns the script as a module."""
    spec = importlib.util.spec_from_file_location("judge_script", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load()

# Fraction of correct judgements, their number; the same with a certainty of 80 or more; the same
# of those whose truth is no tie.
PRISM = {
    "command-r-plus, all features": (0.720, 1001, 0.893, 149, 0.720, 1001),
    "command-r-plus, key features": (0.678, 1001, 0.741, 174, 0.678, 1001),
    "gpt-4o, key features": (0.706, 988, 0.904, 115, 0.706, 988),
    "gpt-4o, key features, second run": (0.725, 639, 0.908, 87, 0.725, 639),
    "command-r-plus, least important feature": (0.673, 1001, 0.780, 214, 0.673, 1001),
    "gpt-4o, least important feature": (0.727, 995, 0.880, 92, 0.727, 995),
    "command-r-plus, all features, tie allowed": (0.689, 1001, np.nan, 0, 0.670, 781),
    "gpt-3.5-turbo, all features, tie allowed": (0.537, 1001, np.nan, 0, 0.676, 788),
    "gpt-4o, all features, tie allowed": (0.727, 1001, np.nan, 0, 0.701, 795),
    "llama-3-70b, all features, tie allowed": (0.673, 269, np.nan, 0, 0.763, 215),
    "command-r-plus, no persona, ties among the truths": (0.524, 991, np.nan, 0, 0.664, 782),
}
OTHERS = {"ap": [0.779, 0.946, 0.949, 0.964], "ec": [0.498, 0.506, 0.520, 0.541, 0.590]}


def made():
    columns = {
        "judge": np.array([0, 0, 0, 0, 1]),
        "pair": np.arange(5),
        "user": np.array([0, 0, 1, -1, -1]),
        "truth": np.array([0, 1, 2, 0, 0]),
        "correct": np.array([1, 0, 1, 1, 0], bool),
        "certainty": np.array([90, 80, 60, -1, -1]),
    }
    return preferences.Judgements(("one", "other"), **columns)


def test_figures_by_hand():
    found = script.figures(made(), 0)
    assert found.correct == (0.75, 4) and found.preferred == (2 / 3, 3)
    assert found.certain == (0.5, 2) and found.stated == 3
    assert found.area == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    assert found.calibration == pytest.approx((0.1 + 0.8 + 0.4) / 3)
    assert 0 < found.interval[0] < 0.75 < found.interval[1] <= 1
    other = script.figures(made(), 1)
    assert other.correct == (0.0, 1) and other.stated == 0
    assert np.isnan([*other.interval, other.area, other.calibration]).all()
    assert script.row("x", other) == "| x | 0.000 | 1 | - | 0.000 | 1 | - | - | 0 | - | - |"
    lines = script.table(made(), 80, 0)
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")


def test_an_interval_counts_a_person_once():
    # Of one person with all judgements right and one with all wrong, half of a resample is right.
    sums, counts = np.array([100.0, 0.0]), np.array([100.0, 100.0])
    assert bootstrap.interval_of_ratio(sums, counts) == (0.0, 1.0)
    draw = np.random.default_rng(0).uniform(size=60)
    of_mean = bootstrap.interval_of_mean(draw)
    of_ratio = bootstrap.interval_of_ratio(draw, np.ones(60))
    np.testing.assert_allclose(of_mean, of_ratio, atol=0.005)
    error = draw.std() / np.sqrt(60)
    wanted = draw.mean() + 1.96 * error * np.array([-1, 1])
    np.testing.assert_allclose(of_mean, wanted, atol=0.15 * error)


def test_the_longer_answer():
    length = np.array([[3, 1], [1, 2], [4, 4], [9, 1]])
    pairs = preferences.Pairs(*[np.zeros(4)] * 3, length, *[np.zeros(4)] * 3)
    assert script.longer_answer(pairs) == (2.5 / 4, 4)


def recorded():
    root = os.environ.get("PFLJAX_DATA", "")
    if not root or not (pathlib.Path(root) / "prism_pairs").is_dir():
        pytest.skip("PFLJAX_DATA names no folder that holds prism_pairs")
    return root


def test_recorded_judges_of_prism():
    found = preferences.read_judgements(recorded())
    assert list(found.names) == list(PRISM)
    for number, wanted in enumerate(PRISM.values()):
        values = script.figures(found, number)
        shown = [*values.correct, *values.certain, *values.preferred]
        np.testing.assert_array_equal(np.round(shown, 3), wanted, err_msg=found.names[number])
    pairs = preferences.read_prism_pairs(recorded(), known=False)
    longer, count = script.longer_answer(pairs)
    assert (round(longer, 3), count) == (0.654, 2645)


def test_recorded_judges_of_other_tasks():
    found = preferences.read_other_judgements(recorded())
    for kind, wanted in OTHERS.items():
        values = [
            round(script.figures(found, number).correct[0], 3)
            for number, name in enumerate(found.names)
            if name.startswith(kind) and "with_tie" not in name
        ]
        assert sorted(values) == wanted
