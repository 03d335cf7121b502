"""Storage of the clients' states and examples, on devices or on the host."""
