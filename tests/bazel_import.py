"""Imports a package and all its modules; under Bazel only declared dependencies are there."""

import importlib
import pathlib
import pkgutil
import sys

import pfljax

if __name__ == "__main__":
    room = importlib.import_module(sys.argv[1])
    for module in pkgutil.walk_packages(getattr(room, "__path__", ()), room.__name__ + "."):
        importlib.import_module(module.name)

    # An editable installation would lend what is not declared.
    home = pathlib.Path(pfljax.__file__).parent
    lent = [
        name
        for name, module in sys.modules.items()
        if name.startswith("pfljax.") and home not in pathlib.Path(module.__file__).parents
    ]
    if lent:
        sys.exit(f"{room.__name__} imports what BUILD does not declare: {', '.join(lent)}")
