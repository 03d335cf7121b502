"""The command `pfljax`: runs one of train, compare, sweep, evaluate and partition.

pfljax compare --config=configs/quickstart.py --workdir=WORKDIR
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = ("train", "compare", "sweep", "evaluate", "partition")


def main() -> None:
    """Runs the command that the first argument names."""
    names = ", ".join(COMMANDS)
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"pfljax COMMAND [--flags], where COMMAND is one of {names}.")
        sys.exit(0)
    name = sys.argv.pop(1)
    if name not in COMMANDS:
        print(f"error: Unknown command {name!r}; the commands are {names}.", file=sys.stderr)
        sys.exit(2)
    from pfljax.cli import app  # its flags are defined at import

    command = importlib.import_module(f"pfljax.cli.{name}")
    app.run(command.main, command.define_flags, command.__doc__)
