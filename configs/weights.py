"""Weights as data: held-out users, half for validation, whose params are generated or fitted.

40 % of the users never train. `:popquorn`: 262 annotators and a linear model of features of texts,
split by text. `:omniglot`: 20 drawers, the alphabet of a drawing, a linear model of the features of
a CNN. `:label_skew`: MNIST with Dirichlet(0.1) label skew, 200 clients, a linear model.

    python experiments/weights.py --config=configs/weights.py:popquorn --workdir=WORKDIR \
        --config.data.dir=DIRECTORY

docs/results/weights.md has the learning rates of each data set, and the tables.
"""

from pfljax.training.study.config import comparison_config
from pfljax.training.study.config_values import require_known
from pfljax.training.study.personalization import row_config

_DATA = ("popquorn", "omniglot", "label_skew")


def get_config(data: str = "popquorn"):
    require_known("data set of this config", data, _DATA)
    if data == "popquorn":
        config = row_config(data, "linear", rounds=100, batch_size=10, tuned={})
    elif data == "omniglot":
        config = comparison_config("omniglot", "cnn", rounds=30, learning_rate=0.1)
    else:
        config = comparison_config(
            "mnist", "logistic", partition="dirichlet", rounds=30, learning_rate=0.03
        )
        config.data.num_clients, config.data.min_size = 200, 20
    # The linear model has no body that could compute the features of PeFLL's descriptors.
    config.hparams.pefll.embedding.update({"name": "mlp", "widths": (64,)})
    config.algorithms = ("fedavg", "fedavg_ft", "pfedhn", "pefll")
    config.eval_every, config.checkpoint_every = config.rounds, 0
    config.selection.mean, config.selection.which_round = "unweighted", "last"
    config.data.test_fraction, config.data.unseen_fraction = 0.3, 0.4
    return config
