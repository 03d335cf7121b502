"""PGFed's comparison of nine methods, on a quarter of a subset of CIFAR-10 with LeNet.

25 clients, Dirichlet(0.3), 6 in a round, batch 10, SGD with momentum 0.9, five local epochs, as in
the authors' code, which has all of CIFAR-10, a larger CNN and 150 rounds. Here 3,000 images,
20 rounds and two seeds. Models are compared by the unweighted mean over clients, as in the code.
Of the learning rates 0.002, 0.005 (the code's) and 0.02, each method has the one with the best
validation accuracy on another partition, see docs/results/recent_methods_figures.md.

    python experiments/compare.py --config=configs/pgfed.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config():
    config = comparison_config(
        "cifar10", "lenet", partition="dirichlet", rounds=20, learning_rate=0.005, seeds=(0, 1)
    )
    config.algorithms = (
        *("local", "fedavg", "perfedavg", "fedrod", "apfl", "pfedme", "fedrep"),
        *("pgfed", "pgfedmo"),
    )
    config.learning_rates.perfedavg = 0.002
    config.checkpoint_every = 0
    config.data.num_clients, config.data.alpha, config.data.server_fraction = 25, 0.3, 0.75
    config.cohort.size, config.local_epochs = 6, 5
    config.client_optimizer.momentum = 0.9
    config.selection.mean = "unweighted"
    return config
