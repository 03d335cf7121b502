"""Long-tailed versions of balanced data sets: each class is rarer than the previous one."""

from __future__ import annotations

import numpy as np

from pfljax.data.examples import Examples
from pfljax.data.sources.cifar import load_cifar10, load_cifar100
from pfljax.errors import UserError


def long_tail(examples: Examples, imbalance: float, largest: int = 0) -> Examples:
    """Keeps a decreasing number of examples of each class, the first ones of the pool.

        n_c = n_0 imbalance^(-c / (C - 1))

    Args:
      examples: The examples of a classification.
      imbalance: The ratio of the frequencies of class 0 and class `C - 1`, at least 1.
      largest: `n_0`, the number of examples of class 0; 0 takes the size of the smallest class.

    Returns:
      The remaining examples in their order; test examples are reduced like training examples.

    Raises:
      UserError: `imbalance` is below 1, or would leave a class without examples; `largest` exceeds
        the size of the smallest class.

    References:
      Cui, Jia, Lin, Song, Belongie, "Class-Balanced Loss Based on Effective Number of Samples",
      2019, https://arxiv.org/abs/1901.05555.

    >>> pool = Examples("toy", np.zeros((30, 1)), np.repeat([0, 1, 2], 10).astype(np.int32), 3)
    >>> np.bincount(long_tail(pool, 10.0).targets).tolist()
    [10, 3, 1]
    """
    first = _size_of_first(examples, largest)
    if not 1 <= imbalance <= first:
        whose = "largest" if largest else f"the size of the smallest class of {examples.name}"
        raise UserError(f"imbalance must be from 1 to {first}, {whose}, not {imbalance!r}.")
    shares = imbalance ** -np.linspace(0, 1, examples.num_classes)
    # The small addend prevents an exact power, such as 10 / 10, from being rounded down.
    sizes = (first * shares + 1e-9).astype(int)
    kept = _of_each_class(examples, [slice(size) for size in sizes])
    return kept._replace(name=f"{examples.name}_lt{imbalance:g}")


def beyond_long_tail(examples: Examples, largest: int) -> Examples:
    """Returns as many examples of each class that no long tail keeps, as balanced test examples.

    Args:
      examples: The examples of a classification.
      largest: As in `long_tail`, at least 1 and less than the size of the smallest class.

    Raises:
      UserError: There are no such examples.

    >>> pool = Examples("toy", np.zeros((30, 1)), np.repeat([0, 1, 2], 10).astype(np.int32), 3)
    >>> np.bincount(beyond_long_tail(pool, 8).targets).tolist()
    [2, 2, 2]
    """
    smallest = _size_of_first(examples, 0)
    if not largest or _size_of_first(examples, largest) == smallest:
        raise UserError(
            f"A long tail of {examples.name} leaves no balanced test examples: set largest to less "
            f"than {smallest}, the size of the smallest class."
        )
    return _of_each_class(examples, [slice(largest, smallest)] * examples.num_classes)


def _size_of_first(examples: Examples, largest: int) -> int:
    """Returns the number of examples of class 0 in a long tail."""
    smallest = int(np.bincount(examples.targets, minlength=examples.num_classes).min())
    if not 0 <= largest <= smallest:
        raise UserError(
            f"largest must be from 0 to {smallest}, the size of the smallest class of "
            f"{examples.name}, not {largest!r}."
        )
    return largest or smallest


def _of_each_class(examples: Examples, parts: list[slice]) -> Examples:
    """Returns the examples of some ranks of each class, in the order of the pool."""
    kept = [np.flatnonzero(examples.targets == c)[part] for c, part in enumerate(parts)]
    rows = np.sort(np.concatenate(kept))
    owners = None if examples.owners is None else examples.owners[rows]
    inputs, targets = examples.inputs[rows], examples.targets[rows]
    return examples._replace(inputs=inputs, targets=targets, owners=owners)


def load_cifar10_lt(data_dir: str = "", *, imbalance: float = 100.0, largest: int = 0) -> Examples:
    """Returns CIFAR-10 with a long tail: class 0 is `imbalance` times as frequent as class 9.

    Args:
      data_dir: As for `load_cifar10`.
      imbalance: The ratio of the numbers of examples of class 0 and class 9, at least 1.
      largest: The number of examples of class 0; 0 takes the size of the smallest class.
    """
    return long_tail(load_cifar10(data_dir), imbalance, largest)


def load_cifar100_lt(data_dir: str = "", *, imbalance: float = 100.0, largest: int = 0) -> Examples:
    """Returns CIFAR-100 with a long tail: class 0 is `imbalance` times as frequent as class 99.

    Args:
      data_dir: As for `load_cifar100`.
      imbalance: The ratio of the numbers of examples of class 0 and class 99, at least 1.
      largest: The number of examples of class 0; 0 takes the size of the smallest class.
    """
    return long_tail(load_cifar100(data_dir), imbalance, largest)
