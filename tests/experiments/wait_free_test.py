"""The virtual clock of co-distillation, against rounds worked out by hand."""

import importlib.util
import pathlib

import numpy as np

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "wait_free.py"


def load():
    """Returns the script as a module."""
    spec = importlib.util.spec_from_file_location("wait_free", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


clock = load()


def test_two_rounds_by_hand():
    durations = np.array([1.0, 3.0, 2.0])
    cohorts = [np.array([0, 1]), np.array([1, 2])]
    # In turn: 2 * 3 + 0.5, and the same again.
    assert clock.finish(durations, cohorts, 0.5, wait_free=False) == 13
    # The uploads have arrived at 3.5; client 1 is free at 6 and uploads at 9, client 2 at 5.5.
    assert clock.finish(durations, cohorts, 0.5, wait_free=True) == 9.5
    # With slow messages the client that is busy delays nothing: 3 + 4, and 3 + 4 again.
    assert clock.finish(durations, cohorts, 4.0, wait_free=True) == 14


def test_with_all_clients_the_slowest_one_decides():
    durations, everyone = np.array([1.0, 3.0, 2.0]), [np.arange(3)] * 200
    for communication in (0.0, 1.0, 5.0):
        in_turn = clock.finish(durations, everyone, communication, wait_free=False)
        np.testing.assert_allclose(in_turn / 200, 6 + communication)
        wait_free = clock.finish(durations, everyone, communication, wait_free=True)
        np.testing.assert_allclose(wait_free / 200, max(3 + communication, 6), atol=0.05)


def test_the_speed_up_is_between_one_and_two():
    found = np.array(clock.rows(np.arange(1, 41), rounds=20, seeds=(0, 1)))
    gains = found[:, 2] / found[:, 3]
    assert np.all(gains >= 1) and np.all(gains <= 2)
    few, all_clients = (gains[np.isclose(found[:, 0], share)] for share in (0.1, 1.0))
    assert few[0] > 1.3 and all_clients[0] < 1.05
    assert all_clients[-1] > all_clients[0] + 0.1


def test_durations_have_the_mean_one():
    durations = clock.drawn_durations(np.array([1, 2, 3]), np.random.default_rng(0))
    np.testing.assert_allclose(durations.mean(), 1)
    assert np.all(durations > 0)
