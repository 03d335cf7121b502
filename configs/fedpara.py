"""FedPara and pFedPara with kernels of several ranks, on a tenth of Fashion-MNIST.

7,000 images, 20 clients, Dirichlet(0.5), MLP 784-256-128-10 (235,146 params), batch 32, two local
epochs, all clients in every round, 25 rounds, two seeds, half of a client's images for testing.
The scenarios have the rank R of the factors of all kernels; `:baselines` are Local, FedAvg and
FedPer with whole kernels, and `:rank_8` and the other names are one of the scenarios, for sweep.py.
docs/results/recent_methods_figures.md has the values that were tried, and the results.

    python experiments/compare.py --config=configs/fedpara.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY_WITH_THE_FOUR_IDX_FILES
"""

from pfljax.training.study.config import default_config

_RANKS = (4, 8, 16)


def get_config(scenario: str = ""):
    config = default_config()
    config.model.widths = (256, 128)
    config.data.name, config.data.server_fraction = "fashion_mnist", 0.9
    config.data.num_clients, config.data.alpha = 20, 0.5
    config.data.test_fraction, config.data.validation_fraction = 0.5, 0.2
    config.batch_size, config.local_epochs = 32, 2
    config.rounds, config.eval_every, config.checkpoint_every = 25, 1, 0
    config.seeds = (0, 1)
    # Chosen on validation images, see docs/results/recent_methods_figures.md.
    config.learning_rates.update({"local": 0.1, "fedavg": 0.3, "fedper": 0.1})
    config.learning_rates.update({"fedpara": 0.1, "pfedpara": 0.03})
    if scenario == "baselines":
        config.algorithms = ("local", "fedavg", "fedper")
        return config
    config.algorithms = ("fedpara", "pfedpara")
    scenarios = {
        f"rank_{rank}": {"hparams": {name: {"rank": rank} for name in config.algorithms}}
        for rank in _RANKS
    }
    if scenario:
        config.update(scenarios[scenario])
    else:
        config.scenarios = scenarios
    return config
