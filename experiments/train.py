"""Trains and evaluates one method; see `pfljax/cli/train.py`."""

from pfljax.cli import app, train

if __name__ == "__main__":
    app.run(train.main, train.define_flags, train.__doc__)
