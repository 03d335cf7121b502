"""FEMNIST by writer: 62 classes of digits and letters, an MLP, 100 writers a round, batch 10.

10 % of the writers are held out to evaluate the methods on new clients. 100 rounds of one local
epoch, so each of 450 writers trains in about 22 of them. `:cnn` uses the 4-layer CNN, which is much
slower and needs 2.4 MB for each writer with Local and Ditto.

    python experiments/compare.py --config=configs/femnist.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config(model: str = "mlp"):
    config = comparison_config(
        "femnist",
        model,
        rounds=100,
        eval_every=20,
        learning_rate=0.05,
    )
    config.hparams.fedrep.head_epochs = 1
    config.cohort.size = 100
    config.data.unseen_fraction = 0.1
    return config
