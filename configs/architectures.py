"""Clients with three architectures: eight methods that exchange no whole model, on the digits.

20 clients with Dirichlet(0.1) label skew; client i has the model i modulo 3 of two MLPs and a CNN,
whose features all have 128 entries. FML and FedKD exchange an MLP with 32 hidden units. 60 rounds
of one local epoch, three seeds; `docs/results/architectures.md` has the table.

    python experiments/compare.py --config=configs/architectures.py --workdir=WORKDIR
"""

from pfljax.training.study.config import default_config


def get_config():
    config = default_config()
    config.rounds = 60
    config.eval_every = 5
    config.checkpoint_every = 0
    config.seeds = (0, 1, 2)
    config.data.test_fraction = 0.5
    config.data.validation_fraction = 0.2
    config.algorithms = (
        *("local", "fedproto", "fd", "fml"),
        *("fedkd", "lg_fedavg", "fedgh", "fedpcl"),
    )
    config.architectures = ("mlp(widths=(128,))", "mlp(widths=(256, 128))", "simple_cnn")
    # The model that clients exchange beside their own.
    config.hparams.fml.meme.update({"name": "mlp", "widths": (32,)})
    config.hparams.fedkd.mentee.update({"name": "mlp", "widths": (32,)})
    # Chosen for each method on validation examples, see docs/results/architectures.md.
    config.learning_rates.update(
        {
            **dict.fromkeys(("local", "fedproto", "lg_fedavg", "fedgh"), 0.3),
            **dict.fromkeys(("fd", "fml", "fedkd"), 0.1),
            "fedpcl": 0.03,
        }
    )
    return config
