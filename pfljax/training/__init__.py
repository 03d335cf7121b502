"""Runs: from a config to results on disk."""
