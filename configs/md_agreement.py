"""MD-Agreement: which tweet is offensive, by annotators who are the clients; split by tweet.

Frozen features of the tweets (MiniLM). 387 users with 20 ratings or more, up to 1,988; 50 rounds of
one local epoch, all users in every round. After the colon is a row of
`pfljax/training/study/personalization.py`, as in `configs/popquorn.py`.

    python experiments/compare.py --config=configs/md_agreement.py:bias --workdir=WORKDIR/bias \
        --config.data.dir=DIRECTORY
    python experiments/users.py --workdir=WORKDIR --against=bias/fedper

Learning rates and what was tuned with them: docs/results/annotators.md.
"""

from pfljax.training.study.personalization import row_config

TUNED = {
    "linear": {
        "local": {"learning_rate": 0.03},
        "apfl": {"learning_rate": 0.1},
        "pfedhn": {"learning_rate": 0.3, "rate": 0.03},
        "fedavg": {"learning_rate": 0.3},
        "ditto": {"learning_rate": 0.3, "lam": 0.3},
        "fedavg_ft": {"learning_rate": 0.3, "fine_tuning_epochs": 5},
    },
    "bias": {"fedper": {"learning_rate": 0.3}},
    "difference": {"fedavg": {"learning_rate": 0.6}},
    "difference_bias": {"fedper": {"learning_rate": 0.3}},
    "hidden_bias": {"fedper": {"learning_rate": 0.6}},
    "hidden_factors": {"fedper": {"learning_rate": 0.2}},
    "user_token": {"fedper": {"learning_rate": 0.2}},
    "basis": {"fedper": {"learning_rate": 0.6}},
}


def get_config(row: str = "linear"):
    return row_config("md_agreement", row, rounds=50, batch_size=32, tuned=TUNED)
