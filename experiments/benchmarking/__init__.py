"""What the benchmark measures: workloads, the measurements themselves, and the baselines."""
