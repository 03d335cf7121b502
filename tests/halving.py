"""The halves of a cluster of clients by trying all, for tests of methods that split clusters."""

import itertools

import numpy as np


def best_halves(similarity, members):
    """The halves of a cluster by trying all; the first has the cluster's first client."""
    first, *others = members
    best = None
    for count in range(len(others)):
        for chosen in itertools.combinations(others, count):
            here = [first, *chosen]
            there = [k for k in others if k not in chosen]
            largest = similarity[np.ix_(here, there)].max()
            if best is None or largest < best[0]:
                best = largest, here, there
    return best[1:]
