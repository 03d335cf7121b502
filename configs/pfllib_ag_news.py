"""PFLlib's AG News row: all 127,600 texts, 20 clients, Dirichlet(1), fastText, batch 10.

32,000 words, texts of at most 200 tokens. Three quarters of a client's texts are for training, and
the incomplete last batch of an epoch is dropped, as in PFLlib; Local, which its table lacks, is
here. Rates were chosen for each method on validation texts (docs/results/pfllib.md).

    python experiments/compare.py --config=configs/pfllib_ag_news.py --workdir=WORKDIR \\
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config():
    config = comparison_config(
        "ag_news",
        "fasttext",
        partition="dirichlet",
        rounds=40,
        eval_every=4,
        learning_rate=1.0,
        seeds=(0,),
    )
    config.checkpoint_every = 20
    config.algorithms = (
        *("local", "fedavg", "gpfl", "feddbe", "fedproto"),
        *("fedbabu", "fedcp", "fedala", "fedrep"),
    )
    # The others have 1.0. With that, FedBABU and FedRep diverged after some 20 rounds.
    config.learning_rates.update(dict.fromkeys(("gpfl", "feddbe", "fedbabu", "fedrep"), 0.3))
    config.hparams.feddbe.kappa, config.hparams.fedrep.head_epochs = 1.0, 1
    config.drop_remainder = True
    config.data.alpha = 1.0
    config.data.num_clients = 20
    return config
