"""The School table of Motley (https://arxiv.org/abs/2206.09262): exam scores in 139 schools.

A linear model from a zero start on inputs that are standardized for each school, 501 rounds of one
epoch with all schools, batches of min(32, n) without the incomplete last one, five splits: some two
minutes on two cores. The value after the last round counts, `personal/test_mse_unweighted`, which
is 9,522 times the published number (half the squared error of scores that are scaled from 1..70 to
0..1). Rates are half of the published ones, and weights of proximal terms twice, as the loss has no
factor of one half. Each method has the setting of Motley's grids with the best validation score.

    python experiments/compare.py --config=configs/motley_school.py --workdir=WORKDIR \\
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config

# "fedavgm" with rate s is SGD with rate s / 10 and momentum 0.9.
_MOMENTUM = {"momentum": 0.9}


def get_config():
    config = comparison_config(
        "school",
        "logistic",
        rounds=501,
        eval_every=501,
        learning_rate=0.005,
        learning_rates={
            "local": 0.005,
            "fedavg": 0.05,
            "fedavg_ft": 0.005,
            "ifca": 0.015,
            "ditto": 0.015,
            "mr_mtl": 0.005,
            "knnper": 0.005,
        },
        seeds=(100, 1100, 2100, 3100, 4100),
    )
    config.algorithms = ("local", "fedavg", "fedavg_ft", "ifca", "ditto", "mr_mtl", "knnper")
    config.checkpoint_every = 0
    config.data.split, config.data.standardize = "plain", "client"
    config.data.test_fraction, config.data.validation_fraction = 0.15, 0.15 / 0.85
    config.zero_init = True
    config.batch_size, config.drop_remainder, config.shrink_batch = 32, True, True
    config.selection = {"mean": "unweighted", "which_round": "last"}
    config.per_method.fedavg = {"server_optimizer": {"learning_rate": 0.1, **_MOMENTUM}}
    config.per_method.fedavg_ft = {"server_optimizer": {"learning_rate": 1.0, **_MOMENTUM}}
    config.per_method.knnper = {"server_optimizer": {"learning_rate": 1.0, **_MOMENTUM}}
    config.per_method.ditto = {"server_optimizer": {"learning_rate": 0.3, **_MOMENTUM}}
    config.per_method.ifca = {
        "server_optimizer": {"learning_rate": 0.3, **_MOMENTUM},
        "zero_init": False,
    }
    config.hparams.ifca.update({"clusters": 4, "weight_by_size": True})
    config.hparams.mr_mtl.update({"lam": 2.0, "average_changes": True})
    config.hparams.knnper.update({"lam": 0.5, "scale": 3.0})
    config.hparams.fedavg_ft.fine_tuning_epochs = 50
    config.hparams.ditto.update({"lam": 2.0, "rate_factor": 1 / 3})
    return config
