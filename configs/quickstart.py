"""Eight methods on the digits of scikit-learn, which need no download.

1,797 images of 8x8 pixels, 20 clients with Dirichlet(0.1) label skew, an MLP 64-100-10, 60 rounds
of one local epoch, three seeds: about 25 seconds on two cores.

    python experiments/compare.py --config=configs/quickstart.py --workdir=WORKDIR
"""

from pfljax.training.study.config import default_config


def get_config():
    config = default_config()
    config.rounds = 60
    config.eval_every = 5
    config.checkpoint_every = 0
    config.seeds = (0, 1, 2)
    # Half of the examples are test examples, as small differences need many; see the page below.
    config.data.test_fraction = 0.5
    config.data.validation_fraction = 0.2
    config.algorithms = (
        *("local", "fedavg", "fedavg_ft", "fedprox"),
        *("scaffold", "ditto", "fedper", "fedrep"),
    )
    # Chosen for each method on validation examples, see docs/results/quickstart.md.
    config.learning_rates.update(
        {
            "local": 0.1,
            "fedavg": 1.0,
            "fedavg_ft": 0.3,
            "fedprox": 1.0,
            "scaffold": 0.3,
            "ditto": 0.3,
            "fedper": 0.3,
            "fedrep": 0.3,
        }
    )
    return config
