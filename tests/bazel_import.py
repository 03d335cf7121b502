"""Imports a package and all its modules; under Bazel only declared dependencies are there."""

import importlib
import pathlib
import pkgutil
import sys

import pfljax

if __name__ == "__main__":
    package = importlib.import_module(sys.argv[1])
    for module in pkgutil.walk_packages(getattr(package, "__path__", ()), package.__name__ + "."):
        importlib.import_module(module.name)

    # An editable installation would provide undeclared packages.
    home = pathlib.Path(pfljax.__file__).parent
    undeclared = [
        name
        for name, module in sys.modules.items()
        if name.startswith("pfljax.") and home not in pathlib.Path(module.__file__).parents
    ]
    if undeclared:
        sys.exit(f"{package.__name__} imports what BUILD does not declare: {', '.join(undeclared)}")
