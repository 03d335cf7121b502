"""The workloads, measurements and baselines of the benchmark."""
