"""What a round costs: bytes that clients send and receive, and collectives between devices."""
