"""Runs any method over any population: knows the protocol, no method by name."""
