"""The communication of a round: bytes of clients, and collectives between devices."""
