"""The commands: train, compare, sweep and what they share."""
