"""Inputs that are one array, or a dict of arrays by name, such as an image and its caption.

All arrays of a dict have the examples on their first axis. What is known of inputs (mean, std,
vocabulary) is one value for a single array, and a dict by the same names for a dict of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Inputs = np.ndarray | dict[str, np.ndarray]
# A statistic of inputs, by name where they are a dict.
Statistic = float | np.ndarray | dict[str, float | np.ndarray]
# Sizes of id spaces, by name where inputs are a dict; the names of measured inputs are left out.
Vocabulary = tuple[int, ...] | dict[str, tuple[int, ...]]

# Separates the key in files from the name of an array: `inputs.caption`.
SEPARATOR = "."


def map_inputs(function: Callable[..., Any], inputs: Any, *others: Any) -> Any:
    """Applies a function to an array, or to each array of a dict.

    Args:
      function: `(array, *others) -> value`.
      inputs: One array, or a dict of arrays.
      *others: Further arguments of the same form.

    Returns:
      The value, or a dict of the values.

    Example:
      >>> map_inputs(len, {"text": [1, 2], "rating": [3]})
      {'text': 2, 'rating': 1}
    """
    if isinstance(inputs, Mapping):
        return {
            name: map_inputs(function, array, *(other[name] for other in others))
            for name, array in inputs.items()
        }
    return function(inputs, *others)


def by_name(inputs: Any) -> dict[str, Any]:
    """Returns the arrays of a dict; a single array has the name ''."""
    return dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}


def of_name(value: Any, name: str, default: Any = None) -> Any:
    """Returns what is known of one array of inputs.

    Args:
      value: For all arrays, or a dict by their names.
      name: Of the array.
      default: For a name that the dict leaves out.
    """
    return value.get(name, default) if isinstance(value, Mapping) else value


def key_of(key: str, name: str) -> str:
    """Returns the key under which a file holds what is known of one array.

    Example:
      >>> key_of("inputs", ""), key_of("inputs", "caption")
      ('inputs', 'inputs.caption')
    """
    return f"{key}{SEPARATOR}{name}" if name else key


def to_keys(key: str, value: Any) -> dict[str, Any]:
    """Returns a value, or the values of a dict, by the keys under which a file holds them."""
    return {key_of(key, name): one for name, one in by_name(value).items()}


def from_keys(key: str, values: Mapping[str, Any], default: Any = None) -> Any:
    """The inverse of `to_keys`: a value, a dict of values, or the default where there is no key.

    Example:
      >>> from_keys("inputs", {"inputs.a": 1, "inputs.b": 2, "mean": 3})
      {'a': 1, 'b': 2}
    """
    if key in values:
        return values[key]
    prefix = f"{key}{SEPARATOR}"
    return {k[len(prefix) :]: one for k, one in values.items() if k.startswith(prefix)} or default


def describe(inputs: Any) -> str:
    """Returns shape and dtype of an example as a part of a sentence.

    Args:
      inputs: The inputs of one example, or anything with their shapes and dtypes.

    Example:
      >>> describe(np.zeros((8, 8, 1), np.uint8))
      '8x8x1 (uint8)'
      >>> describe({"user": np.int32(0), "text": np.zeros(20, np.int32)})
      'user scalar (int32), text 20 (int32)'
    """

    def one(name: str, form: Any) -> str:
        shape = "x".join(map(str, form.shape)) or "scalar"
        return f"{name} {shape} ({form.dtype})".lstrip()

    return ", ".join(one(name, form) for name, form in by_name(inputs).items())
