"""FedGMM on the digits of scikit-learn: held-out clients, and classes that no client has.

20 clients with Dirichlet(0.1) label skew, of which 5 are held out; an MLP 64-100-10, 60 rounds of
one local epoch, batch 10, three seeds. The normal distributions are those of the 64 pixels: the
encoder is the model `logistic`, whose features are its inputs. Learning rates are those of six with
the best validation accuracy on another partition, see docs/results/recent_methods_figures.md.

    python experiments/compare.py --config=configs/fedgmm_digits.py --workdir=WORKDIR
    python experiments/unseen_classes.py --config=configs/fedgmm_digits.py --workdir=WORKDIR \
        --classes=8,9
"""

from pfljax.training.study.config import default_config


def get_config():
    config = default_config()
    config.rounds, config.eval_every, config.checkpoint_every = 60, 20, 0
    config.seeds = (0, 1, 2)
    config.algorithms = ("fedavg", "fedavg_ft", "fedgmm")
    config.learning_rates.update({"fedavg": 0.6, "fedavg_ft": 0.3, "fedgmm": 0.6})
    # Half of the examples are test examples, as in configs/quickstart.py.
    config.data.test_fraction, config.data.validation_fraction = 0.5, 0.2
    config.data.unseen_fraction = 0.25
    config.hparams.fedgmm.dimensions = 64
    config.hparams.fedgmm.encoder.name = "logistic"
    return config
