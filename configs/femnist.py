"""FEMNIST by writer: 62 classes of digits and letters, LeNet, 20 writers a round, batch 10.

A tenth of the writers never train, and show what the methods are worth to newcomers. 60 rounds of
one local epoch. An evaluation scores all writers, which costs as much as some rounds. `:cnn` takes
the 4-layer CNN, which costs more and keeps 2.4 MB for each writer with Local and Ditto; `:mlp` and
`:logistic` are much cheaper.

    python experiments/compare.py --config=configs/femnist.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.config import default_config


def get_config(model: str = "lenet"):
    config = default_config()
    config.rounds = 60
    config.eval_every = 20
    config.seeds = (0,)
    config.algorithms = ("local", "fedavg", "fedavg_ft", "ditto", "fedper", "fedrep")

    config.batch_size = 10
    config.client_optimizer.learning_rate = 0.05
    config.hparams.fedrep.head_epochs = 1
    config.cohort.size = 20

    config.data.name = "femnist"
    config.data.partition = "natural"
    config.data.unseen_fraction = 0.1
    config.model.name = model
    return config
