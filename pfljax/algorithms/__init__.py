"""The methods, one file each, and the registry that lists them.

A method's factory takes the task, how clients train, and its hyper-parameters as keyword-only
arguments, from whose names and defaults the configs are made. Importing this package imports no
method.
"""

from pfljax.algorithms.registry import ALGORITHMS, TAGS, Method, checked

__all__ = ["ALGORITHMS", "TAGS", "Method", "checked"]
