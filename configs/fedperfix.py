"""FedPerfix and other private parts of a small vision Transformer, on CIFAR-100 by superclass.

20 superclasses are the clients, with five classes each; half of the images in the directory, three
quarters of each client's for training. `vit` of four blocks of width 64 on patches of 8x8, from
random weights; 25 rounds of one local epoch, all clients, batch 32, SGD with momentum 0.9, two
seeds. FedPer keeps the head private, or the attentions too; FedPerfix adapters of 43 hidden units,
two thirds of the width as in the authors' scripts, and the head. The authors have ViT-S at 224x224,
Dirichlet partitions, and 50 rounds of ten epochs with an eighth of 64 clients.

    python experiments/compare.py --config=configs/fedperfix.py:adapters \
        --workdir=WORKDIR/adapters --config.data.dir=DIRECTORY

After the colon is what is private: 'head' and 'attention' for FedPer, 'adapters' for FedPerfix;
'none' has Local, FedAvg and fine-tuning.
"""

from pfljax.training.study.config import comparison_config
from pfljax.training.study.config_values import require_known

# With the best learning rate of 0.01, 0.03 (the default here) and 0.1 for each, see
# docs/results/recent_methods_figures.md.
_PRIVATE = {
    "none": {
        "algorithms": ("local", "fedavg", "fedavg_ft"),
        "learning_rates": {"local": 0.1, "fedavg": 0.1, "fedavg_ft": 0.01},
    },
    "head": {"algorithms": ("fedper",), "learning_rates": {"fedper": 0.01}},
    "attention": {"algorithms": ("fedper",), "hparams": {"fedper": {"private": "Attention"}}},
    "adapters": {"algorithms": ("fedperfix",), "model": {"adapter_width": 43}},
}


def get_config(private: str = "adapters"):
    require_known("private part of this config", private, _PRIVATE)
    config = comparison_config("cifar100", "vit", rounds=25, learning_rate=0.03, seeds=(0, 1))
    config.checkpoint_every = 0
    config.batch_size = 32
    config.client_optimizer.momentum = 0.9
    config.data.validation_fraction, config.data.server_fraction = 0.2, 0.5
    config.model.update({"patch": 8, "width": 64, "layers": 4, "heads": 4})
    config.update(_PRIVATE[private])
    return config
