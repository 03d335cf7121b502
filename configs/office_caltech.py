"""Office-Caltech-10 by domain: ten classes, four clients, MLP 800-100-10, batch 10.

60 rounds of one local epoch: 15 ms a round of FedAvg, a minute for the six methods and one seed.
`:logistic` uses the linear model.

    python experiments/compare.py --config=configs/office_caltech.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import default_config


def get_config(model: str = "mlp"):
    config = default_config()
    config.seeds = (0, 1, 2)
    config.algorithms = ("local", "fedavg", "fedavg_ft", "ditto", "fedper", "fedrep")

    config.rounds = 60
    config.eval_every = 5
    config.client_optimizer.learning_rate = 0.01
    # Chosen for each method on validation examples, see docs/results/data_sets.md.
    config.learning_rates.update(
        {
            "local": 0.03,
            "fedavg": 0.1,
            "fedavg_ft": 0.03,
            "ditto": 0.03,
            "fedper": 0.1,
            "fedrep": 0.03,
        }
    )

    config.data.name = "office_caltech"
    config.data.partition = "natural"
    config.model.name = model
    return config
