"""Exam scores of pupils in London by school: a regression, 139 clients, MLP 28-32-1, batch 10.

100 rounds of one local epoch: two and a half minutes for the six methods and three seeds on two
cores shared with other work. `:logistic` uses the linear model, which has no body that FedPer
and FedRep could share.

    python experiments/compare.py --config=configs/school.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config(model: str = "mlp"):
    config = comparison_config(
        "school",
        model,
        rounds=100,
        learning_rate=0.01,
        # Chosen for each method on validation examples, see docs/results/data_sets.md.
        learning_rates={
            "local": 0.003,
            "fedavg": 0.03,
            "fedavg_ft": 0.01,
            "ditto": 0.01,
            "fedper": 0.01,
            "fedrep": 0.01,
        },
    )
    config.hparams.ditto.lam = 3.0
    config.hparams.fedrep.head_epochs = 1
    if model == "mlp":
        config.model.widths = (32,)
    return config
