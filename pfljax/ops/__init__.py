"""Building blocks of methods: averages, prototypes, hypernetworks, masks, mixtures."""
