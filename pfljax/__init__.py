"""pfljax: personalized federated learning, a whole round in one XLA program."""

__version__ = "0.1.0"
