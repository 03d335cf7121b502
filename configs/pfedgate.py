"""pFedGate on the handwritten digits at several densities, beside methods with whole models.

The 1,797 images of scikit-learn, 20 clients, Dirichlet(0.5), MLP 64-100-10, batch 10, one local
epoch, all clients in every round, 60 rounds, three seeds, half of a client's images for testing.
The scenarios have the fraction of the weights that a client keeps, in percent; `:baselines` are
Local, FedAvg, Ditto and FedPer, which send whole models or bodies, and `:50` and the other names
are one of the scenarios, for sweep.py. docs/results/recent_methods_figures.md has the values that
were tried, and the results.

    python experiments/compare.py --config=configs/pfedgate.py --workdir=WORKDIR --vmap_seeds
"""

from pfljax.training.study.config import default_config

# Learning rates by density in percent, and those of the others, chosen on validation images; see
# docs/results/recent_methods_figures.md.
_RATES = {100: 1.0, 75: 3.0, 50: 1.0, 25: 1.0, 10: 1.0}
_RATE_OF_OTHERS = 0.3


def get_config(scenario: str = ""):
    config = default_config()
    config.data.alpha = 0.5
    config.data.test_fraction, config.data.validation_fraction = 0.5, 0.2
    config.rounds, config.eval_every, config.checkpoint_every = 60, 5, 0
    config.seeds = (0, 1, 2)
    if scenario == "baselines":
        config.algorithms = ("local", "fedavg", "ditto", "fedper")
        config.client_optimizer.learning_rate = _RATE_OF_OTHERS
        return config
    config.algorithms = ("pfedgate",)
    scenarios = {
        str(percent): {
            "hparams": {"pfedgate": {"density": percent / 100}},
            "learning_rates": {"pfedgate": rate},
        }
        for percent, rate in _RATES.items()
    }
    if scenario:
        config.update(scenarios[scenario])
    else:
        config.scenarios = scenarios
    return config
