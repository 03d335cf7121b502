"""Memory and adapters by item: a common model, a bias of each client's own, and its history.

The clients are users, the items texts as features of a frozen encoder, and no rating of a tested
item is trained on (`data.split=by_item`). `:popquorn` (262 annotators, offensive or not, MiniLM),
`:md_agreement` (the 387 annotators with 20 ratings or more, wordllama) and `:gap` (51 authors of 10
reviews or more, five stars or fewer, wordllama; reviews are split by product). In the scenario
`common` all clients have one linear model, in `bias` also an adapter, a bias of their own. FedAvg,
FedPer, Local and fine-tuned FedAvg have no memory, the other methods have one.

All users in every round, one local epoch. Learning rates and a hyper-parameter of each memory were
chosen on validation examples with six runs for each method and scenario. `:gap.bias` is one
scenario alone; docs/results/memory.md has the commands of its tables.

    python experiments/compare.py --config=configs/memory.py:popquorn --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
    python experiments/users.py --workdir=WORKDIR --against=common/fedavg
"""

from pfljax.training.study.config import comparison_config
from pfljax.training.study.config_values import require_known

# The keys of each data set.
_DATA = {
    "popquorn": {"rounds": 60, "batch_size": 32, "data": {"min_size": 20}},
    "md_agreement": {
        "rounds": 40,
        "batch_size": 64,
        "data": {"min_size": 20, "options": {"md_agreement": {"features": "wordllama"}}},
    },
    "gap": {"rounds": 60, "batch_size": 32, "data": {"min_size": 10}},
}
# The hyper-parameter of each memory that was chosen with the learning rate.
_WITH_MEMORY = {"knnper": "lam", "dpl": "lam", "persona_plug": "scale"}
# Learning rates by data set and scenario, with the hyper-parameter of a memory. A method that is
# not listed has the default rate, and is in no table.
_CHOSEN = {
    "popquorn": {
        "common": {
            "local": (0.1,),
            "fedavg": (0.6,),
            "fedavg_ft": (1.0,),
            "knnper": (0.3, 0.4),
            "dpl": (0.3, 2.0),
            "persona_plug": (1.0, 3.0),
        },
        "bias": {
            "fedper": (1.0,),
            "knnper": (1.0, 0.2),
            "dpl": (1.0, 4.0),
            "persona_plug": (0.3, 3.0),
        },
    },
    "md_agreement": {
        "common": {
            "local": (0.3,),
            "fedavg": (1.0,),
            "fedavg_ft": (0.6,),
            "knnper": (1.0, 0.4),
            "dpl": (1.0, 2.0),
            "persona_plug": (1.0, 10.0),
        },
        "bias": {
            "fedper": (0.6,),
            "knnper": (1.0, 0.2),
            "dpl": (1.0, 1.0),
            "persona_plug": (0.3, 3.0),
        },
    },
    "gap": {
        "common": {
            "local": (1.0,),
            "fedavg": (1.0,),
            "fedavg_ft": (0.3,),
            "knnper": (0.1, 0.6),
            "dpl": (0.3, 4.0),
            "persona_plug": (0.3, 10.0),
        },
        "bias": {
            "fedper": (0.1,),
            "knnper": (0.1, 0.2),
            "dpl": (0.1, 2.0),
            "persona_plug": (0.1, 3.0),
        },
    },
}


def _scenario(data: str, name: str) -> dict:
    """Returns the keys of a scenario."""
    chosen = _CHOSEN[data][name]
    hparams = {method: {} for method in _WITH_MEMORY}
    for method, key in _WITH_MEMORY.items():
        if method in chosen:
            hparams[method][key] = chosen[method][1]
        hparams[method]["private_head"] = name == "bias"
    keys = {
        "learning_rates": {method: values[0] for method, values in chosen.items()},
        "hparams": hparams,
    }
    if name == "bias":
        keys["adapter"] = {"name": "bias", "layers": "head", "network": "trained"}
    return keys


def get_config(study: str = "popquorn"):
    data, _, scenario = study.partition(".")
    require_known("data set of the study", data, _DATA)
    scenarios = {name: _scenario(data, name) for name in ("common", "bias")}
    require_known("scenario", scenario or "common", scenarios)
    config = comparison_config(
        "pgraphrag" if data == "gap" else data,
        "logistic",
        rounds=60,
        eval_every=10,
        learning_rate=0.1,
    )
    config.algorithms = ("local", "fedavg", "fedavg_ft", "fedper", *_WITH_MEMORY)
    config.data.split = "by_item"
    config.data.test_fraction, config.data.validation_fraction = 0.3, 0.2
    config.selection.mean, config.selection.which_round = "unweighted", "last"
    config.hparams.persona_plug.items = 64
    config.update(_DATA[data])
    if scenario:
        config.update(scenarios[scenario])
    else:
        config.scenarios = scenarios
    return config
