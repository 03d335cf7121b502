"""UCI HAR by subject: six activities, 30 clients, MLP 1152-100-6 on the signals, batch 10.

Windows overlap by half, so each subject's last windows of every activity are tested, with a gap of
one window to the training windows. 60 rounds of one local epoch: 0.06 s a round of FedAvg, a minute
for the six methods and one seed. `--config.data.options.har.inputs=features` uses the 561 features
instead, and `:logistic` the linear model.

    python experiments/compare.py --config=configs/har.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config(model: str = "mlp"):
    config = comparison_config(
        "har",
        model,
        rounds=60,
        learning_rate=0.05,
        # Chosen for each method on validation examples, see docs/results/data_sets.md.
        learning_rates={
            "local": 0.1,
            "fedavg": 0.03,
            "fedavg_ft": 0.03,
            "ditto": 0.1,
            "fedper": 0.1,
            "fedrep": 0.1,
        },
    )

    return config
