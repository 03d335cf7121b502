"""The rows of studies in which a client is a user: networks with different personal parts.

Each row is a network on fixed features with the methods that are compared on it. Rows are compared
by `experiments/users.py`, in work directories beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

from pfljax.errors import UserError
from pfljax.training.study import config as config_lib

_WIDTH = 64


class Row(NamedTuple):
    """A network, its personal part, and the methods that train it.

    Attributes:
      methods: The names of the methods.
      widths: The widths of the hidden layers of the network; () for a linear one.
      adapter: Keys of `config.adapter`, the personal part; {} for none.
      user_features: Value of `config.data.user_features`, the features of users in the inputs.
    """

    methods: tuple[str, ...]
    widths: tuple[int, ...] = ()
    adapter: Mapping[str, Any] = {}
    user_features: str = "none"


ROWS = {
    # FedAvg is the row "text", which does not know the user.
    "linear": Row(("local", "fedavg", "fedavg_ft", "ditto", "apfl", "pfedhn")),
    # The row "bias": a number for each user and class, HuBi-simple.
    "bias": Row(("fedper",), adapter={"name": "bias", "layers": "head"}),
    # One linear model of all users, which reads how a user's labels differ from those of others.
    "difference": Row(("fedavg",), user_features="difference"),
    "difference_bias": Row(
        ("fedper",), adapter={"name": "bias", "layers": "head"}, user_features="difference"
    ),
    "hidden": Row(("fedavg", "fedper"), (_WIDTH,)),
    "hidden_bias": Row(("fedper",), (_WIDTH,), {"name": "bias", "layers": "head"}),
    # HuBi-medium: a factor for each user and hidden unit.
    "hidden_factors": Row(
        ("fedper",), (_WIDTH,), {"name": "ia3", "layers": "head", "input_layers": "head"}
    ),
    "user_token": Row(("fedper",), (_WIDTH,), {"name": "bias", "layers": "body"}),
    "lora": Row(("fedper",), (_WIDTH,), {"name": "lora", "rank": 4}),
    "houlsby": Row(("fedper",), (_WIDTH,), {"name": "houlsby", "width": 8}),
    "hidden_map": Row(("fedper",), (_WIDTH,), {"name": "hidden_map", "rank": 4}),
    "basis": Row(("fedper",), (_WIDTH,), {"name": "basis", "rank": 16}),
}


def row_config(
    data: str,
    row: str,
    *,
    rounds: int,
    batch_size: int,
    tuned: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> ml_collections.ConfigDict:
    """Returns the config of a row: a network on the texts of annotators, split by item.

    Args:
      data: The name of the data set, whose owners are the users.
      row: A key of `ROWS`.
      rounds: Number of rounds.
      batch_size: Number of examples in a local step.
      tuned: Values that were chosen on validation examples, `{row: {method: {name: value}}}`, of
        `learning_rate` and of hyper-parameters of the method.

    Raises:
      UserError: There is no such row.

    Example:
      >>> config = row_config("popquorn", "lora", rounds=9, batch_size=10, tuned={})
      >>> config.algorithms, config.adapter.name, config.adapter.network
      (('fedper',), 'lora', 'trained')
    """
    if row not in ROWS:
        raise UserError(
            f"There is no row {row!r}; after the colon of --config, name one of {', '.join(ROWS)}."
        )
    methods, widths, adapter, user_features = ROWS[row]
    config = config_lib.comparison_config(
        data,
        "mlp" if widths else "logistic",
        rounds=rounds,
        eval_every=rounds,
        learning_rate=0.1,
    )
    for method, values in tuned.get(row, {}).items():
        hyperparameters = dict(values)
        config.learning_rates[method] = hyperparameters.pop("learning_rate")
        config.hparams[method].update(hyperparameters)
    if widths:
        config.model.widths = widths
    if adapter:
        config.adapter.update({"network": "trained", **adapter})
    config.algorithms, config.batch_size = methods, batch_size
    # Scores are means over users, after the last round.
    config.selection.mean, config.selection.which_round = "unweighted", "last"
    config.data.split, config.data.test_fraction, config.data.min_size = "by_item", 0.3, 20
    config.data.user_features = user_features
    config.checkpoint_every = 0
    return config
