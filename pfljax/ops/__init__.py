"""What several methods share: averages, prototypes, hypernetworks, masks, low rank, mixtures."""
