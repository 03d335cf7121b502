"""Compares methods over several seeds; see `pfljax/cli/compare.py`."""

from pfljax.cli import app, compare

if __name__ == "__main__":
    app.run(compare.main, compare.define_flags, compare.__doc__)
