"""Recommendation on MovieLens: UniMP reduced, beside FedRAP; full ranking of each user's last film.

610 users are the clients, 50 of them in a round. The last film that a user rated is tested, and the
one before it validates. After the colon is a row: 'one' trains the next film alone, 'two' also the
rating, 'three' also the tags of the next film, each with one network that reads the user's history;
'factorization' is matrix factorization, the model of FedRAP, on the same films.

    python experiments/compare.py --config=configs/unimp.py:three --workdir=WORKDIR/three \
        --config.data.dir=DIRECTORY
    python experiments/compare.py --config=configs/unimp.py:factorization \
        --workdir=WORKDIR/factorization --config.data.dir=DIRECTORY
    python experiments/full_ranking.py --workdir=WORKDIR

Learning rates and what was tuned with them: docs/results/recommendation.md.
"""

from pfljax.errors import UserError
from pfljax.training.study.config import comparison_config

# The weights of the losses in each row.
WEIGHTS = {
    "one": {"next_item": 1.0, "rating": 0.0, "tags": 0.0},
    "two": {"next_item": 1.0, "rating": 0.1, "tags": 0.0},
    "three": {"next_item": 1.0, "rating": 0.1, "tags": 1.0},
}
FACTORIZATION = "factorization"
# Chosen for each method on validation items, see docs/results/recommendation.md.
RATES = {
    "histories": {"local": 0.3, "fedavg": 0.1, "fedavg_ft": 0.1},
    FACTORIZATION: {"fedavg": 3.0, "fedper": 10.0, "fedrap": 0.3},
}


def get_config(row: str = "three"):
    if row not in (*WEIGHTS, FACTORIZATION):
        rows = ", ".join((*WEIGHTS, FACTORIZATION))
        raise UserError(f"configs/unimp.py has no row {row!r}; its rows are {rows}.")
    config = comparison_config(
        "movielens",
        "unimp" if row in WEIGHTS else "matrix_factorization",
        rounds=100,
        eval_every=50,
        learning_rate=0.1,
        learning_rates=RATES[FACTORIZATION if row == FACTORIZATION else "histories"],
    )
    config.seeds_vary = "training"
    config.data.split = "last_two"
    config.data.options.movielens.num_others = 31
    config.cohort.size = 50
    config.batch_size = 16
    config.local_steps = 8
    config.server_optimizer.name = "adam"
    config.server_optimizer.learning_rate = 0.01
    config.model.width = 16
    if row == FACTORIZATION:
        config.algorithms = ("fedavg", "fedper", "fedrap")
        config.data.options.movielens.feedback = "implicit"
        return config
    config.algorithms = ("local", "fedavg", "fedavg_ft")
    config.data.options.movielens.feedback = "histories"
    config.data.options.movielens.history = config.model.history = 16
    config.recommendation.update(WEIGHTS[row])
    return config
