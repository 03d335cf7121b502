"""Held-out users of weights.py: their given items, and params that are generated or fitted."""
