"""Anchor clients: the largest, then those whose labels overlap least with the earlier ones."""

import numpy as np

from pfljax.ops import anchors


def chosen(counts, count):
    return anchors.choose(np.array(counts, np.int32), count).tolist()


def test_clients_with_other_labels_come_first():
    counts = [[5, 5, 0, 0], [9, 3, 0, 0], [0, 0, 2, 2], [1, 1, 1, 1], [0, 0, 0, 0]]
    # Overlaps with client 1 (3/4, 1/4): 3/4, -, 0, 1/2; with client 2: 0, -, -, 1/2.
    assert chosen(counts, 2) == [1, 2]
    assert chosen(counts, 3) == [1, 2, 3]
    assert chosen(counts, 4) == [1, 2, 3, 0]


def test_too_few_clients_leave_experts_without_an_anchor():
    assert chosen([[0, 3], [1, 0]], 4) == [0, 1, -1, -1]
