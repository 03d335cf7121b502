"""Omniglot by drawer: the alphabet of a drawing, 20 clients, the 4-layer CNN on 28x28, batch 10.

All drawers write all alphabets, so there is little to personalize here: FedAvg came out ahead of
its fine-tuned form and of Local (one seed). With `--config.data.options.omniglot.owners=alphabet
--config.data.options.omniglot.labels=character` each client has characters of its own. 60 rounds
of one local epoch: 1 to 1.5 s a round of FedAvg on two cores shared with other work. `:mlp` and
`:logistic` are cheaper.

    python experiments/compare.py --config=configs/omniglot.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.config import default_config


def get_config(model: str = "cnn"):
    config = default_config()
    config.seeds = (0, 1, 2)
    config.algorithms = ("local", "fedavg", "fedavg_ft", "ditto", "fedper", "fedrep")

    config.rounds = 60
    config.eval_every = 5
    config.client_optimizer.learning_rate = 0.05

    config.data.name = "omniglot"
    config.data.partition = "natural"
    config.model.name = model
    return config
