"""Parkinson's telemonitoring by subject: the UPDRS score from the voice, 42 clients, MLP 19-32-1.

A regression. Each subject's last recordings are tested, because those of one day are similar. 100
rounds of one local epoch, batch 10: 6 ms a round, a minute for the six methods and three seeds on
two cores shared with other work. `:logistic` uses the linear model, which has no body that
FedPer and FedRep could share.

    python experiments/compare.py --config=configs/parkinsons.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config(model: str = "mlp"):
    config = comparison_config(
        "parkinsons",
        model,
        rounds=100,
        learning_rate=0.01,
        # Chosen for each method on validation examples, see docs/results/data_sets.md.
        learning_rates={
            "local": 0.01,
            "fedavg": 0.01,
            "fedavg_ft": 0.03,
            "ditto": 0.01,
            "fedper": 0.01,
            "fedrep": 0.01,
        },
    )
    config.hparams.ditto.lam = 0.01
    config.hparams.fedrep.head_epochs = 1
    if model == "mlp":
        config.model.widths = (32,)
    return config
