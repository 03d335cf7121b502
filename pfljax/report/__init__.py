"""Tables and plots of finished runs, and of partitions."""
