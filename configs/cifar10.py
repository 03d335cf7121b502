"""CIFAR-10 with label skew: 20 clients, Dirichlet(0.1), LeNet, batch 10.

All images in the directory; three quarters of each client's for training. 15 rounds of
one local epoch: with 12,000 images 1 to 2 s a round of FedAvg on two cores shared with other work.
`:cnn` uses the 4-layer CNN (12 s a round), `:mlp` and `:logistic` are cheaper.

    python experiments/compare.py --config=configs/cifar10.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config(model: str = "lenet"):
    config = comparison_config(
        "cifar10",
        model,
        partition="dirichlet",
        rounds=15,
        learning_rate=0.02,
        seeds=(0,),
    )
    config.hparams.fedrep.head_epochs = 1
    config.data.alpha = 0.1
    config.data.num_clients = 20
    return config
