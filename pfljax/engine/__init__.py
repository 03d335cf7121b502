"""Runs any method on any population, through the protocol of `core.Algorithm`."""
