"""MovieLens by user: ratings of films, 610 clients, matrix factorization, 50 users a round.

The films' vectors are the body, and the user's vector and bias the head: with FedPer and FedRep
the head is private to the user, with FedAvg it is that of an average user. Each user's last ratings
are tested. 60 rounds of one local epoch, batch 10; Adam at the server, because most films are
rated by few users of a round, and an average of changes would hardly move them. Two minutes for the
six methods and one seed on two cores shared with other work.

    python experiments/compare.py --config=configs/movielens.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config(model: str = "matrix_factorization"):
    config = comparison_config(
        "movielens",
        model,
        rounds=60,
        eval_every=10,
        learning_rate=0.03,
        # Chosen for each method on validation examples, see docs/results/data_sets.md.
        learning_rates={
            "local": 0.03,
            "fedavg": 0.01,
            "fedavg_ft": 0.1,
            "ditto": 0.03,
            "fedper": 0.03,
            "fedrep": 0.03,
        },
    )
    config.hparams.ditto.lam = 1.0
    config.hparams.fedrep.head_epochs = 1
    config.cohort.size = 50
    config.server_optimizer.name = "adam"
    config.server_optimizer.learning_rate = 0.003
    config.model.width = 8
    return config
