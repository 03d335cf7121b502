"""pFedGate on FEMNIST's larger writers at several densities, beside methods with whole models.

Writers with 320 characters or more (113 of 500 in a subset of the data), MLP 784-100-62, batch 32,
two local epochs, 20 writers in a round, 60 rounds, two seeds. The scenarios have the fraction of
the weights that a client keeps, in percent; `:baselines` are Local, FedAvg, Ditto and FedPer, which
send whole models or bodies, and `:50` and the other names are one of the scenarios, for sweep.py.
docs/results/recent_methods_figures.md has the values that were tried, and the results.

    python experiments/compare.py --config=configs/pfedgate.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config

_DENSITIES = (100, 75, 50, 25, 10)


def get_config(scenario: str = ""):
    config = comparison_config(
        "femnist", "mlp", rounds=60, eval_every=10, learning_rate=0.1, seeds=(0, 1)
    )
    config.checkpoint_every, config.batch_size, config.local_epochs = 0, 32, 2
    config.data.min_size, config.data.validation_fraction = 320, 0.2
    # Most pixels are white, far from a mean of zero with the data set's own constants.
    config.data.standardize = "pooled"
    config.cohort.size = 20
    if scenario == "baselines":
        config.algorithms = ("local", "fedavg", "ditto", "fedper")
        return config
    config.algorithms = ("pfedgate",)
    scenarios = {
        str(percent): {"hparams": {"pfedgate": {"density": percent / 100}}}
        for percent in _DENSITIES
    }
    if scenario:
        config.update(scenarios[scenario])
    else:
        config.scenarios = scenarios
    return config
