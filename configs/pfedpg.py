"""pFedPG and other methods on prompts of a frozen vision Transformer, CIFAR-10 with label skew.

20 clients with Dirichlet(0.1) label skew share half of the images; the server has the other half,
on which `vit` (four blocks of width 64, patches of 8x8) is trained before, a stand-in for weights
of ImageNet. Eight prompts and a new head are trained: 40 rounds of one local epoch, all clients,
batch 32, SGD with momentum 0.9. FedPer has common prompts and private heads, FedAvg common prompts
and a common head. The seeds vary the training only, so that no client has the server's images. Of
the learning rates 0.003, 0.01 and 0.03, each method has the one with the best validation accuracy,
see docs/results/recent_methods_figures.md.

    python experiments/pretrain.py --config=configs/pfedpg.py --workdir=BASE \
        --config.data.dir=DIRECTORY
    python experiments/compare.py --config=configs/pfedpg.py --workdir=WORKDIR \
        --config.adapter.base=BASE/params.safetensors --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config():
    config = comparison_config(
        "cifar10", "vit", partition="dirichlet", rounds=40, learning_rate=0.03
    )
    config.algorithms = ("local", "fedavg", "fedavg_ft", "fedper", "pfedpg")
    config.learning_rates.update(dict.fromkeys(("local", "fedper", "pfedpg"), 0.01))
    config.seeds_vary = "training"
    config.checkpoint_every = 0
    config.batch_size = 32
    config.client_optimizer.momentum = 0.9
    config.data.alpha, config.data.num_clients = 0.1, 20
    config.data.server_fraction, config.data.validation_fraction = 0.5, 0.2
    config.model.update({"patch": 8, "width": 64, "layers": 4, "heads": 4})
    config.adapter.update({"name": "prompt", "head": "new"})
    return config
