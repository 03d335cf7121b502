"""FedJETs on clients that never train and need no labels: CIFAR-10 with two classes a client.

40 clients with two classes each share half of the images, ten of them are held out; the server has
the other half, on which the common expert is trained before, which all methods start from. LeNet,
40 rounds of one local epoch, 15 of 30 clients in each, batch 10. For the held-out clients, FedAvg
deploys its model and FedJETs its experts with the gate, without a label of theirs; FedAvg with
fine-tuning trains on their labelled examples. Of the learning rates 0.01, 0.03 and 0.1, all have
the best validation accuracy with 0.01. The seeds vary the training only, so that no client
has the server's images.

    python experiments/pretrain.py --config=configs/fedjets.py --workdir=BASE \
        --config.data.dir=DIRECTORY
    python experiments/compare.py --config=configs/fedjets.py --workdir=WORKDIR \
        --config.init_from=BASE/params.safetensors --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config():
    config = comparison_config(
        "cifar10", "lenet", partition="shards", rounds=40, learning_rate=0.01
    )
    config.algorithms = ("fedavg", "fedavg_ft", "fedjets")
    config.seeds_vary = "training"
    config.checkpoint_every = 0
    config.cohort.size = 15
    config.data.num_clients, config.data.unseen_fraction = 40, 0.25
    config.data.server_fraction, config.data.validation_fraction = 0.5, 0.2
    return config
