"""MovieLens by user: which film is rated next, beside 99 others; 134 clients, 30 a round.

Users with 200 ratings or more, whatever the rating; matrix factorization of width 8, whose film
table is the body, and the user the head. 30 rounds of one local epoch, batch 10; Adam at the
server, as in `configs/movielens.py`. Each user's last quarter of ratings is tested.

    python experiments/compare.py --config=configs/movielens_ranking.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
    python experiments/full_ranking.py --workdir=WORKDIR
"""

from pfljax.training.study.config import comparison_config


def get_config():
    config = comparison_config(
        "movielens",
        "matrix_factorization",
        rounds=30,
        eval_every=10,
        learning_rate=0.1,
        # Chosen for each method on validation examples, see docs/results/recent_methods_figures.md.
        learning_rates={"local": 0.1, "fedavg": 1.0, "fedper": 1.0, "fedrap": 0.3},
        seeds=(0, 1),
    )
    config.algorithms = ("local", "fedavg", "fedper", "fedrap")
    config.data.options.movielens.feedback = "implicit"
    config.data.min_size = 200
    config.cohort.size = 30
    config.server_optimizer.name = "adam"
    config.server_optimizer.learning_rate = 0.003
    config.model.width = 8
    return config
