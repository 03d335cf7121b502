"""StudEmo: who reads joy in a review, by annotators who are the clients; split by review.

Whether a user rates the joy of a review above 0, from frozen features of the review (wordllama). 25
users with 123 to 384 ratings, so that intervals over users are wide; 50 rounds of one local epoch,
all users in every round. Other emotions are `--config.data.options.studemo.labels=anger` and so on.
After the colon is a row of `pfljax/training/study/personalization.py`, as in `configs/popquorn.py`.

    python experiments/compare.py --config=configs/studemo.py:bias --workdir=WORKDIR/bias \
        --config.data.dir=DIRECTORY
    python experiments/users.py --workdir=WORKDIR --against=bias/fedper

Learning rates and what was tuned with them: docs/results/annotators.md.
"""

from pfljax.training.study.personalization import row_config

TUNED = {
    "linear": {
        "fedavg": {"learning_rate": 0.2},
        "ditto": {"learning_rate": 0.3, "lam": 0.1},
    },
    "bias": {"fedper": {"learning_rate": 0.1}},
    "difference": {"fedavg": {"learning_rate": 0.3}},
}


def get_config(row: str = "linear"):
    return row_config("studemo", row, rounds=50, batch_size=32, tuned=TUNED)
