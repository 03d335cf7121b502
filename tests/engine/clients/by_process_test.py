"""Who keeps which client, where several processes share a population on their hosts."""

import numpy as np
import pytest

from pfljax.engine import sampling
from pfljax.engine.clients import by_process


@pytest.mark.parametrize("num_clients, size", [(8, 5), (40, 30), (9, 9), (5000, 60)])
@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_the_capacity_holds_every_cohort(num_clients, size, num_processes):
    plan = sampling.CohortPlan(num_clients, size)
    capacity = by_process.capacity(plan, num_processes)
    even = -(-size // num_processes)
    assert even <= capacity <= min(size, -(-num_clients // num_processes))
    assert capacity < 2 * even + 20
    draw = np.random.default_rng(0)
    for _ in range(200):
        ids = draw.choice(num_clients, size, replace=False).astype(np.int32)
        kept = by_process.group_by_process(ids, num_processes, capacity)
        assert kept.shape == (num_processes, capacity)
        assert sorted(kept[kept >= 0]) == sorted(ids)
        for process, own in enumerate(kept):
            assert np.all(own[own >= 0] % num_processes == process)


def test_clients_beyond_the_capacity_are_dropped():
    kept = by_process.group_by_process(np.array([0, 2, 4, -1, 1]), 2, 2)
    np.testing.assert_array_equal(kept, [[0, 2], [1, -1]])


def test_a_process_keeps_its_part_of_a_table(monkeypatch):
    monkeypatch.setattr(by_process.jax, "process_count", lambda: 3)
    monkeypatch.setattr(by_process.jax, "process_index", lambda: 1)
    found = by_process.kept_here(np.array([7, 3, 0, 5, -1], np.int32))
    np.testing.assert_array_equal(found, [-1, 3, -1, -1, -1])
    assert found.dtype == np.int32
