"""POPQUORN: how offensive is a comment, by annotators who are the clients; split by comment.

Whether a user rates a comment above 1, from frozen features of the comment (MiniLM). 262 users, 100
rounds of one local epoch, all users in every round. After the colon is a row of
`pfljax/training/study/personalization.py`: 'linear' for methods on a linear network, 'bias' for a
number per user beside it, 'difference' for features of the user as further inputs, 'hidden' and
others for a network of 64 hidden units with personal parts.

    python experiments/compare.py --config=configs/popquorn.py:bias --workdir=WORKDIR/bias \
        --config.data.dir=DIRECTORY
    python experiments/users.py --workdir=WORKDIR --against=bias/fedper --group=gender

Learning rates and what was tuned with them: docs/results/annotators.md.
"""

from pfljax.training.study.personalization import row_config

TUNED = {
    "linear": {
        "local": {"learning_rate": 0.1},
        "fedavg": {"learning_rate": 0.6},
        "apfl": {"learning_rate": 1.0},
        "pfedhn": {"learning_rate": 0.1, "rate": 0.03},
        "ditto": {"learning_rate": 0.1, "lam": 0.1},
        "fedavg_ft": {"learning_rate": 0.1, "fine_tuning_epochs": 5},
    },
    "hidden": {"fedavg": {"learning_rate": 0.2}, "fedper": {"learning_rate": 0.1}},
    "bias": {"fedper": {"learning_rate": 0.6}},
    "difference": {"fedavg": {"learning_rate": 0.3}},
    "difference_bias": {"fedper": {"learning_rate": 0.1}},
    "hidden_bias": {"fedper": {"learning_rate": 0.2}},
    "hidden_factors": {"fedper": {"learning_rate": 0.1}},
    "user_token": {"fedper": {"learning_rate": 0.1}},
    "lora": {"fedper": {"learning_rate": 0.1}},
    "hidden_map": {"fedper": {"learning_rate": 0.1}},
    "houlsby": {"fedper": {"learning_rate": 0.1}},
    "basis": {"fedper": {"learning_rate": 0.2}},
}


def get_config(row: str = "linear"):
    return row_config("popquorn", row, rounds=100, batch_size=10, tuned=TUNED)
