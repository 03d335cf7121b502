"""FEMNIST writers that never train: 25 of 127 writers are held out; 8 writers a round.

Writers with 300 examples or more, an MLP 784-50-62, 200 rounds of one local epoch, batch 20. For
the held-out writers, FedAvg deploys its model as it is, FedAvg with fine-tuning and pFedHN train on
their examples, and PeFLL generates models from their examples without training. Inputs are
standardized by the mean and the deviation of all training examples. Of eight settings of learning
rates, each method has the one with the best validation accuracy on another choice of writers, see
docs/results/recent_methods_figures.md.

    python experiments/compare.py --config=configs/femnist_unseen.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config():
    config = comparison_config("femnist", "mlp", rounds=200, eval_every=50, learning_rate=0.03)
    config.algorithms = ("fedavg", "fedavg_ft", "pfedhn", "pefll")
    config.learning_rates.update({"fedavg": 0.2, "fedavg_ft": 0.06, "pfedhn": 0.01, "pefll": 0.03})
    config.hparams.pfedhn.rate, config.hparams.pefll.rate = 0.03, 0.0002
    config.batch_size = 20
    config.checkpoint_every = 0
    config.cohort.size = 8
    config.data.standardize = "pooled"
    config.data.min_size, config.data.unseen_fraction = 300, 0.2
    config.model.widths = (50,)
    for method in ("pfedhn", "pefll"):
        # The default, 1 + N / 4, is larger than the hidden layers are with this number of clients.
        config.hparams[method].update({"embedding_size": 32, "hidden": 50})
    return config
