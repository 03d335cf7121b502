"""The commands train, compare, sweep and partition, and the code that they share."""
