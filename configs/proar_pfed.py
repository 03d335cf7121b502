"""PROAR-PFed on a fifth of Fashion-MNIST at several signal-to-noise ratios.

14,000 images, 10 clients, Dirichlet(0.5), MLP, batch 64, momentum 0.9, one local epoch, all clients
in every round, 60 rounds, three seeds. A quarter of a client's images is for training and
validation, so that clients profit from each other. The scenarios have the ratios in dB; `none` has
neither noise nor an error in the estimates of the channels. `:baselines` are Local, FedAvg and
Ditto, whose uploads have no noise; `:20` and the other names are one of the scenarios, for
sweep.py. docs/results/recent_methods_figures.md has the values that were tried, and the results.

    python experiments/compare.py --config=configs/proar_pfed.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY_WITH_THE_FOUR_IDX_FILES
"""

from pfljax.training.study.config import default_config

_SCENARIOS = {
    **{str(ratio): {"snr_db": float(ratio)} for ratio in (0, 5, 10, 20, 30)},
    "none": {"snr_db": 200.0, "csi_error": 0.0},
}


def get_config(scenario: str = ""):
    config = default_config()
    config.data.name, config.data.server_fraction = "fashion_mnist", 0.8
    config.data.num_clients, config.data.alpha = 10, 0.5
    config.data.test_fraction, config.data.validation_fraction = 0.75, 0.2
    config.batch_size, config.client_optimizer.momentum = 64, 0.9
    config.rounds, config.eval_every, config.checkpoint_every = 60, 5, 0
    config.seeds = (0, 1, 2)
    # Chosen on validation images, see docs/results/recent_methods_figures.md.
    config.learning_rates.update({"local": 0.005, "fedavg": 0.02, "ditto": 0.005})
    config.learning_rates.proar_pfed, config.hparams.ditto.lam = 0.02, 1.0
    if scenario == "baselines":
        config.algorithms = ("local", "fedavg", "ditto")
        return config
    config.algorithms = ("proar_pfed",)
    scenarios = {name: {"hparams": {"proar_pfed": keys}} for name, keys in _SCENARIOS.items()}
    if scenario:
        config.update(scenarios[scenario])
    else:
        config.scenarios = scenarios
    return config
