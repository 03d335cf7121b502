"""Omniglot by alphabet: character recognition, the CNN on 28x28, batch 10.

Each client has the characters of one alphabet, 8 clients with 242 characters in the two small
archives. 30 rounds of one local epoch. With `--config.data.options.omniglot.owners=drawer
--config.data.options.omniglot.labels=alphabet` the 20 drawers are the clients, each with all
alphabets; there, FedAvg was better than fine-tuned FedAvg and Local (one seed). `:lenet`,
`:mlp` and `:logistic` use other models.

    python experiments/compare.py --config=configs/omniglot.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config(model: str = "cnn"):
    config = comparison_config(
        "omniglot",
        model,
        rounds=30,
        learning_rate=0.1,
        seeds=(0,),
    )

    config.data.options.omniglot.owners = "alphabet"
    config.data.options.omniglot.labels = "character"
    return config
