"""Shows the data of the clients of an experiment; see `pfljax/cli/partition.py`."""

from pfljax.cli import app, partition

if __name__ == "__main__":
    app.run(partition.main, partition.define_flags, partition.__doc__)
