"""Fashion-MNIST in PFLlib's setting: 20 clients, Dirichlet(0.1), batch 10, learning rate 0.005.

70,000 images, three quarters of each client's for training. As in PFLlib, the last partial batch of
an epoch is dropped, and methods use PFLlib's numbers of epochs. `:cnn` uses the 4-layer CNN instead
of the MLP 784-100-10.

    python experiments/compare.py --config=configs/fashion_mnist.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY_WITH_THE_FOUR_IDX_FILES

Without `--config.data.dir`, the copy of tensorflow-datasets is used.
"""

from pfljax.training.study.config import comparison_config


def get_config(model: str = "mlp"):
    config = comparison_config(
        "fashion_mnist",
        model,
        partition="dirichlet",
        rounds=100,
        learning_rate=0.005,
    )
    config.checkpoint_every = 50
    config.algorithms = (
        *("local", "fedavg", "fedavg_ft", "fedprox"),
        *("scaffold", "ditto", "fedper", "fedrep"),
    )
    config.drop_remainder = True
    config.hparams.fedrep.head_epochs = 1
    config.data.alpha = 0.1
    config.data.num_clients = 20
    return config
