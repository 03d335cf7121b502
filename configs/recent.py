"""Recent methods that classify images, beside seven known ones, on FEMNIST and CIFAR-10.

FEMNIST by writer: MLP, 100 writers of whom 20 train in a round, batch 10, 200 rounds. CIFAR-10:
LeNet, half of the images in the directory, 20 clients with Dirichlet(0.1) label skew, of whom 10
train in each of 40 rounds, batch 32. One local epoch. Learning rates were chosen on validation
examples with the same budget for each method; docs/results/recent.md has the values that were
tried, tables and curves.

    python experiments/compare.py --config=configs/recent.py:femnist --workdir=WORKDIR/femnist \
        --config.data.dir=DIRECTORY
    python experiments/compare.py --config=configs/recent.py:cifar10 --workdir=WORKDIR/cifar10 \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config
from pfljax.training.study.config_values import require_known

_METHODS = (
    *("local", "fedavg", "fedavg_ft", "fedrep", "ditto", "fedala", "fedpac"),
    *("fedselect", "pgfed", "pgfedmo", "fedpara", "pfedpara", "pfedgate", "fedloge", "fedgmm"),
    *("self_fl", "spectral_codist", "proar_pfed", "fedjets", "pefll", "group_pfl"),
)
_KEYS = {
    "femnist": {
        "data": {"name": "femnist", "partition": "natural", "num_owners": 100},
        "model": {"name": "mlp"},
        "cohort": {"size": 20},
        "batch_size": 10,
        "rounds": 200,
        "eval_every": 20,
    },
    "cifar10": {
        "data": {
            "name": "cifar10",
            "partition": "dirichlet",
            "alpha": 0.1,
            "num_clients": 20,
            "server_fraction": 0.5,
        },
        "model": {"name": "lenet"},
        "cohort": {"size": 10},
        "batch_size": 32,
        "rounds": 40,
        "eval_every": 5,
    },
}
# Learning rates by data set and method.
_RATES: dict[str, dict[str, float]] = {
    "femnist": {
        **dict.fromkeys(("proar_pfed", "pefll"), 0.01),
        **dict.fromkeys(("local", "fedrep", "pgfed", "pgfedmo", "pfedpara", "group_pfl"), 0.03),
        **dict.fromkeys(("fedavg", "fedavg_ft", "ditto", "fedala", "fedpac", "fedselect"), 0.1),
        **dict.fromkeys(("fedpara", "pfedgate", "fedgmm", "self_fl"), 0.1),
        **dict.fromkeys(("spectral_codist", "fedjets"), 0.1),
        "fedloge": 0.3,
    },
    "cifar10": {
        "local": 0.01,
        **dict.fromkeys(("fedavg", "ditto", "fedpac", "fedselect", "pgfed", "pgfedmo"), 0.03),
        **dict.fromkeys(("fedpara", "pfedpara", "fedloge"), 0.03),
        **dict.fromkeys(("fedavg_ft", "fedrep", "fedala", "pfedgate"), 0.1),
        "pefll": 0.01,
        "self_fl": 0.03,
        **dict.fromkeys(("spectral_codist", "proar_pfed", "fedjets", "group_pfl"), 0.1),
        "fedgmm": 0.1,
    },
}


def get_config(data: str = "femnist"):
    require_known("data set of this config", data, _KEYS)
    config = comparison_config("femnist", "mlp", rounds=200, learning_rate=0.1, seeds=(0, 1))
    config.algorithms = _METHODS
    config.checkpoint_every = 0
    config.data.validation_fraction, config.data.standardize = 0.1, "pooled"
    config.hparams.fedavg_ft.fine_tuning_epochs = 5
    config.hparams.ditto.lam = 0.1
    config.hparams.fedrep.head_epochs = 1
    config.update(_KEYS[data])
    config.learning_rates.update(_RATES[data])
    return config
