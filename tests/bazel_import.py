"""Imports a package and all its modules; under Bazel only declared dependencies are there."""

import importlib
import pkgutil
import sys

if __name__ == "__main__":
    room = importlib.import_module(sys.argv[1])
    for module in pkgutil.walk_packages(getattr(room, "__path__", ()), room.__name__ + "."):
        importlib.import_module(module.name)
