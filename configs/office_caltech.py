"""Office-Caltech-10 by domain: ten classes, four clients, MLP 800-100-10, batch 10.

60 rounds of one local epoch: 15 ms a round of FedAvg, a minute for the six methods and one seed.
`:logistic` uses the linear model.

    python experiments/compare.py --config=configs/office_caltech.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config(model: str = "mlp"):
    config = comparison_config(
        "office_caltech",
        model,
        rounds=60,
        learning_rate=0.01,
        # Chosen for each method on validation examples, see docs/results/data_sets.md.
        learning_rates={
            "local": 0.03,
            "fedavg": 0.1,
            "fedavg_ft": 0.03,
            "ditto": 0.03,
            "fedper": 0.1,
            "fedrep": 0.03,
        },
    )

    return config
