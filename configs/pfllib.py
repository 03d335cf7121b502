"""Sixty methods on Fashion-MNIST in PFLlib's two scenarios of label skew, 20 clients, MLP.

70,000 images, Dirichlet(0.1) or two classes for each client, three quarters of a client's images
for training, batches of 10, one local epoch, all clients in every round, 30 rounds, three seeds.
2 % of the images belong to the server and are used by FedDF and FedMD only; FedBN has the MLP with
batch normalization. Each method has the learning rate that was best on validation images of another
partition; docs/results/pfllib.md has the values that were tried, and the table.

    python experiments/compare.py --config=configs/pfllib.py --workdir=WORKDIR --vmap_seeds \
        --config.data.dir=DIRECTORY_WITH_THE_FOUR_IDX_FILES

`:dirichlet` and `:two_classes` are one of the scenarios, for sweep.py and costs.py.
"""

import pathlib
import runpy

from pfljax.algorithms import ALGORITHMS

HERE = pathlib.Path(__file__).parent

_KEYS = {
    "dirichlet": {},
    "two_classes": {
        "data": {"partition": "pathological", "classes_per_client": 2, "balanced": False},
    },
}
# Methods by their learning rate.
_RATES = {
    "dirichlet": {
        0.003: "apple mimelite",
        0.01: (
            "local ditto apfl fedrep fedcac fedkd knnper mime fedamp fedmtl fedas mr_mtl pfedfda"
        ),
        0.03: (
            "fedavg_ft scaffold fedper fedbabu fedproto fedala fedfomo pfedhn fedpac fedgen "
            "fedcp reptile feddyn moon fedlc fedntd fedphp fedgc fedcross lg_fedavg gpfl fd "
            "fml fedpcl adafedprox lp_ft feddf fedmd"
        ),
        0.1: (
            "fedavg fedprox perfedavg pfedme fednova qffl afl ifca cfl fedbuff fedasync "
            "pflda fedrod feddbe fedgh"
        ),
        0.3: "fedem",
        1.0: "fedbn",
    },
    "two_classes": {
        0.003: "apple mimelite",
        0.01: "fedper fedrep fedkd mime fedamp fedmtl fedgc fd mr_mtl pfedfda",
        0.03: (
            "fedavg_ft scaffold ditto fedproto fedala fedcac fedpac fedgen fedcp afl ifca "
            "knnper reptile fedbuff feddyn moon fedlc fedntd fedphp fedcross fedrod gpfl "
            "fedpcl feddf fedmd"
        ),
        0.1: (
            "local fedavg fedprox apfl fedbabu perfedavg pfedme fedem fedfomo pfedhn "
            "fednova qffl cfl fedasync pflda lg_fedavg feddbe fedgh fedas fml adafedprox "
            "lp_ft"
        ),
        1.0: "fedbn",
    },
}


def get_config(scenario: str = ""):
    config = runpy.run_path(str(HERE / "fashion_mnist_methods.py"))["get_config"]()
    config.rounds, config.eval_every, config.checkpoint_every = 30, 5, 0
    rates = {
        scenario: {method: rate for rate, methods in by_rate.items() for method in methods.split()}
        for scenario, by_rate in _RATES.items()
    }
    config.algorithms = tuple(name for name in ALGORITHMS if name in rates["dirichlet"])
    config.data.server_fraction = 0.02
    config.hparams.feddbe.kappa, config.hparams.qffl.q = 1.0, 0.01  # chosen on validation, too
    config.per_method.fedbn = {"model": {"name": "mlp_bn"}}
    scenarios = {
        name: {
            **keys,
            "learning_rates": rates[name],
        }
        for name, keys in _KEYS.items()
    }
    if scenario:
        config.update(scenarios[scenario])
    else:
        config.scenarios = scenarios
    return config
