"""The methods, one file each, and the registry that lists them.

A method's factory takes the task, the clients' local training, and its hyper-parameters as
keyword-only arguments, whose names and defaults define the keys of configs. Importing this package
imports no method.
"""

from pfljax.algorithms.registry import ALGORITHMS, TAGS, Method, checked

__all__ = ["ALGORITHMS", "TAGS", "Method", "checked"]
