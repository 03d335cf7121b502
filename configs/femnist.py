"""FEMNIST by writer: 62 classes of digits and letters, the 4-layer CNN, 50 writers a round.

A tenth of the writers never train, and show what the methods are worth to newcomers. 200 rounds
of one local epoch, batch 10. A round of 50 writers trains on some 7,500 images, and an evaluation
scores all writers, which costs more. `:mlp` (0.5 s a round of Ditto on two cores shared with
other work) and `:logistic` are much cheaper.

    python experiments/compare.py --config=configs/femnist.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.config import default_config


def get_config(model: str = "cnn"):
    config = default_config()
    config.rounds = 200
    config.eval_every = 20
    config.seeds = (0,)
    config.algorithms = ("local", "fedavg", "fedavg_ft", "ditto", "fedper", "fedrep")

    config.batch_size = 10
    config.client_optimizer.learning_rate = 0.05
    config.hparams.fedrep.head_epochs = 1
    config.cohort.size = 50

    config.data.name = "femnist"
    config.data.partition = "natural"
    config.data.unseen_fraction = 0.1
    config.model.name = model
    return config
