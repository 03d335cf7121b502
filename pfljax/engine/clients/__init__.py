"""Where the states and the examples of clients are kept: on devices, or on the host."""
