"""Tries values of hyper-parameters and names the best; see `pfljax/cli/sweep.py`."""

from pfljax.cli import app, sweep

if __name__ == "__main__":
    app.run(sweep.main, sweep.define_flags, sweep.__doc__)
