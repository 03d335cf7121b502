"""WISDM by user: six activities, 36 clients, MLP 43-100-6, batch 10.

Each user's last windows of every activity are tested. 60 rounds of one local epoch: 10 ms a
round, or half a minute for the six methods and one seed. `:logistic` uses the linear model.

    python experiments/compare.py --config=configs/wisdm.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config(model: str = "mlp"):
    config = comparison_config(
        "wisdm",
        model,
        rounds=60,
        learning_rate=0.05,
        # Chosen for each method on validation examples, see docs/results/data_sets.md.
        learning_rates={
            "local": 0.03,
            "fedavg": 0.03,
            "fedavg_ft": 0.1,
            "ditto": 0.3,
            "fedper": 0.1,
            "fedrep": 0.1,
        },
    )

    return config
