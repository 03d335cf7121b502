"""From per-client sums to numbers that a table can show."""
