"""Evaluates the models of a run; see `pfljax/cli/evaluate.py`."""

from pfljax.cli import app, evaluate

if __name__ == "__main__":
    app.run(evaluate.main, evaluate.define_flags, evaluate.__doc__)
