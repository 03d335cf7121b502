"""One run: rounds, evaluations, checkpoints, and the files of its work directory."""
