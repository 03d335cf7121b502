"""FedLoGe beside other methods on a long tail of a subset of CIFAR-10, with LeNet.

2,795 images: 1,000 of class 0, a fiftieth of class 9. 20 clients, Dirichlet(0.5), 8 in a round,
batch 16, SGD with momentum 0.5, two local epochs, 40 rounds, three seeds. The authors have all of
CIFAR-10, ResNet-18, 40 clients, batch 8, five local epochs and 500 rounds.
experiments/long_tail.py scores the finished runs by the frequency of classes, on 2,000 other
images, and with a class mask. docs/results/recent_methods_figures.md has the rates that were tried,
and the results.

    python experiments/compare.py --config=configs/fedloge.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
    python experiments/long_tail.py --config=configs/fedloge.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config():
    config = comparison_config(
        "cifar10_lt", "lenet", partition="dirichlet", rounds=40, learning_rate=0.03
    )
    config.algorithms = ("fedavg", "fedrep", "fedrod", "ditto", "fedloge")
    config.learning_rates.update({"fedavg": 0.1, "fedrod": 0.1, "fedloge": 0.3})
    config.checkpoint_every = 0
    config.data.options.cifar10_lt.imbalance = 50.0
    config.data.options.cifar10_lt.largest = 1000
    config.data.num_clients, config.data.alpha = 20, 0.5
    config.data.validation_fraction = 0.2
    config.cohort.size, config.batch_size, config.local_epochs = 8, 16, 2
    config.client_optimizer.momentum = 0.5
    return config
