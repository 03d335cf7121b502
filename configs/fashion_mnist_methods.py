"""23 methods on Fashion-MNIST, with a learning rate and hyper-parameters for each.

`configs/fashion_mnist.py` (20 clients, Dirichlet(0.1), batch 10, MLP) with 30 rounds and three
seeds. Rates and hyper-parameters were chosen with `experiments/sweep.py` on the validation examples
of another seed (7); `docs/results/fashion_mnist.md` has the values tried, the resulting table and
its curves. About half an hour on two cores, a third of it for FedEM.

    python experiments/compare.py --config=configs/fashion_mnist_methods.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY_WITH_THE_FOUR_IDX_FILES --vmap_seeds
"""

import pathlib
import runpy

from pfljax.algorithms import ALGORITHMS

HERE = pathlib.Path(__file__).parent


def get_config():
    config = runpy.run_path(str(HERE / "fashion_mnist.py"))["get_config"]()
    config.rounds = 30
    config.hparams.fedprox.mu = 0.01
    config.hparams.fedavg_ft.fine_tuning_epochs = 10
    config.hparams.fedbabu.fine_tuning_epochs = 10
    config.hparams.fedrep.head_epochs = 5
    config.hparams.perfedavg.alpha = 0.02
    config.hparams.perfedavg.adaptation_steps = 5
    config.hparams.ditto.lam = 0.01
    config.hparams.apfl.alpha = 0.9
    config.hparams.pfedme.lam = 30.0
    config.hparams.fedproto.lam = 0.1
    config.hparams.fedala.eta = 0.1
    config.hparams.fedpac.lam = 0.1
    config.hparams.fedcp.lam = 0.1
    config.hparams.fedcac.tau = 0.9
    config.hparams.fedcac.beta = 2.0
    config.hparams.fedfomo.validation_share = 0.1
    config.hparams.apple.relation_rate = 0.01
    config.hparams.fedem.learners = 5
    config.hparams.pfedhn.rate = 0.1
    config.hparams.pfedhn.momentum = 0.5
    # Chosen for each method on validation examples, see docs/results/fashion_mnist.md.
    rates = {
        **dict.fromkeys(("local", "ditto", "fedper", "fedrep", "fedproto", "fedfomo"), 0.02),
        **dict.fromkeys(("pfedhn", "fedpac", "fedkd", "fedgen", "fedcp"), 0.02),
        **dict.fromkeys(("fedavg", "fedavg_ft", "fedprox", "scaffold", "apfl"), 0.08),
        **dict.fromkeys(("fedbabu", "perfedavg", "pfedme", "fedala", "fedcac", "fedem"), 0.08),
        "apple": 0.005,  # 0.02 was best, and diverged on two of the three partitions
    }
    config.learning_rates.update(rates)
    config.algorithms = tuple(name for name in ALGORITHMS if name in rates)
    return config
