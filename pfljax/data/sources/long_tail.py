"""Long-tailed versions of balanced data sets: each class is rarer than the previous one."""

from __future__ import annotations

import numpy as np

from pfljax.data.examples import Examples
from pfljax.data.sources.cifar import load_cifar10, load_cifar100
from pfljax.errors import UserError


def long_tail(examples: Examples, imbalance: float) -> Examples:
    """Keeps a decreasing number of examples of each class, the first ones of the pool.

        n_c = n_0 imbalance^(-c / (C - 1))

    Args:
      examples: The examples of a classification; `n_0` is the size of the smallest class.
      imbalance: The ratio of the frequencies of class 0 and class `C - 1`, at least 1.

    Returns:
      The remaining examples in their order; test examples are reduced like training examples.

    Raises:
      UserError: `imbalance` is below 1, or would leave a class without examples.

    References:
      Cui, Jia, Lin, Song, Belongie, "Class-Balanced Loss Based on Effective Number of Samples",
      2019, https://arxiv.org/abs/1901.05555.

    >>> pool = Examples("toy", np.zeros((30, 1)), np.repeat([0, 1, 2], 10).astype(np.int32), 3)
    >>> np.bincount(long_tail(pool, 10.0).targets).tolist()
    [10, 3, 1]
    """
    counts = np.bincount(examples.targets, minlength=examples.num_classes)
    if not 1 <= imbalance <= counts.min():
        raise UserError(
            f"imbalance must be from 1 to {counts.min()}, the size of the smallest class of "
            f"{examples.name}, not {imbalance!r}."
        )
    shares = imbalance ** -np.linspace(0, 1, examples.num_classes)
    # The small addend prevents an exact power, such as 10 / 10, from being rounded down.
    sizes = (counts.min() * shares + 1e-9).astype(int)
    kept = [np.flatnonzero(examples.targets == c)[:size] for c, size in enumerate(sizes)]
    rows = np.sort(np.concatenate(kept))
    owners = None if examples.owners is None else examples.owners[rows]
    return examples._replace(
        name=f"{examples.name}_lt{imbalance:g}",
        inputs=examples.inputs[rows],
        targets=examples.targets[rows],
        owners=owners,
    )


def load_cifar10_lt(data_dir: str = "", *, imbalance: float = 100.0) -> Examples:
    """Returns CIFAR-10 with a long tail: class 0 is `imbalance` times as frequent as class 9."""
    return long_tail(load_cifar10(data_dir), imbalance)


def load_cifar100_lt(data_dir: str = "", *, imbalance: float = 100.0) -> Examples:
    """Returns CIFAR-100 with a long tail: class 0 is `imbalance` times as frequent as class 99."""
    return long_tail(load_cifar100(data_dir), imbalance)
