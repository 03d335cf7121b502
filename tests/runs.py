"""A small run that tests of the training share, and what makes two runs the same."""

from __future__ import annotations

import numpy as np

from pfljax.training.run import writers
from pfljax.training.study.config import default_config

ROUNDS = 6


def config(**changes):
    """Ditto (private state) on the digits of five clients, one of them unseen."""
    made = default_config()
    settings = {
        "algorithm": "ditto",
        "rounds": ROUNDS,
        "eval_every": 3,
        "checkpoint_every": 2,
        "cohort.size": 3,
        "data.num_clients": 5,
        "data.alpha": 1.0,
        "data.unseen_fraction": 0.2,
        "engine.devices": 2,
        "engine.rounds_per_call": 2,
        "engine.clients_per_chunk": "2",
    }
    made.update_from_flattened_dict(settings | changes)
    made.model.widths = (8,)
    return made


def interrupt_at(round):
    """A progress report that interrupts a run after a round."""

    def progress(done, scores):
        if done == round:
            raise KeyboardInterrupt

    return progress


def assert_same_run(directory, result, straight):
    """Everything but the time it took is the same, bit for bit."""
    other, expected, _ = straight
    assert writers.read_rows(directory / "metrics.jsonl") == writers.read_rows(
        other / "metrics.jsonl"
    )
    for model in ("personal", "global"):
        assert result[f"{model}_accuracy"] == expected[f"{model}_accuracy"]
    assert result["rounds"] == expected["rounds"]
    clients, wanted = np.load(directory / "clients.npz"), np.load(other / "clients.npz")
    assert set(clients) == set(wanted)
    for name in wanted:
        np.testing.assert_array_equal(clients[name], wanted[name])
