"""From a config to an experiment: data, task, method, optimizers and programs."""
