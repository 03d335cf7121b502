"""Memory and adapters by item: a common model, a client's own bias or coefficients, its history.

The clients are users, the items texts as features of a frozen encoder, and no rating of a tested
item is trained on (`data.split=by_item`). `:popquorn` (262 annotators, offensive or not, MiniLM),
`:md_agreement` (the 387 annotators with 20 ratings or more, wordllama) and `:gap` (51 authors of 10
reviews or more, five stars or fewer, wordllama; reviews are split by product). In the scenario
`common` all clients have one linear model, in `bias` also an adapter, a bias of their own. FedAvg,
FedPer, Local and fine-tuned FedAvg have no memory, the other methods have one.

All users in every round, one local epoch. Rates were chosen on validation
examples with the same budget for all, see docs/results/memory.md, which has the commands.

    python experiments/compare.py --config=configs/memory.py:popquorn --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config, require_known

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
_WITH_MEMORY = ("knnper", "dpl", "persona_plug")
# What is a client's own in each scenario.
_SCENARIOS = {
    "common": {},
    "bias": {
        "adapter": {"name": "bias", "layers": "head", "network": "trained"},
        "hparams": {name: {"private_head": True} for name in _WITH_MEMORY},
    },
}


def get_config(study: str = "popquorn"):
    data, _, scenario = study.partition(".")
    require_known("data set of the study", data, _DATA)
    require_known("scenario", scenario or "common", _SCENARIOS)
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
    config.selection.mean = "unweighted"
    config.hparams.persona_plug.items = 64
    config.update(_DATA[data])
    if scenario:
        config.update(_SCENARIOS[scenario])
    else:
        config.scenarios = _SCENARIOS
    return config
