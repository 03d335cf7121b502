"""Amazon reviews by kind of product: their sentiment, four clients, MLP 5000-100-2, batch 32.

10 rounds of one local epoch: 0.5 s a round of FedAvg on two cores shared with other work.
`:logistic` uses the linear model.

    python experiments/compare.py --config=configs/amazon_review.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config(model: str = "mlp"):
    config = comparison_config(
        "amazon_review",
        model,
        rounds=10,
        eval_every=1,
        learning_rate=0.03,
        # Chosen for each method on validation examples, see docs/results/data_sets.md.
        learning_rates={
            "local": 0.1,
            "fedavg": 0.3,
            "fedavg_ft": 0.1,
            "ditto": 0.3,
            "fedper": 0.1,
            "fedrep": 0.1,
        },
    )
    config.batch_size = 32
    config.hparams.fedrep.head_epochs = 1
    return config
