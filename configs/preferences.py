"""Preferences between two answers; users are clients, and models are linear in features.

    simulated: 1,000 users of Dirichlet(0.1) weights over ten rewards, 16 pairs each of 25 prompts
        with 8 answers, a fifth of the users held out (`simulated:10000` for 10,000 users); the
        three seeds split the pairs and choose the held-out users
    groups: the same with Dirichlet(0.01) over four rewards, so that most users have one of them

Learning rates were chosen for each method on validation examples with the same six values, see
`docs/results/preferences.md`. A minute or two on two idle cores. PRISM and PersonaFeedback are in
`experiments/preferences.py`.

    python experiments/compare.py --config=configs/preferences.py:simulated --workdir=WORKDIR
    python experiments/copl.py --config=configs/preferences.py:simulated
"""

from pfljax.training.study.config import comparison_config

# Chosen on validation examples of `simulated` with seed 7, and used for `groups` too.
_RATES = {
    "local": 0.3,
    "fedavg": 3.0,
    "fedavg_ft": 1.0,
    "ditto": 1.0,
    "perfedavg": 0.3,
    "fspo": 0.3,
}


def get_config(data: str = "simulated"):
    name, _, size = data.partition(":")
    return {"simulated": _simulated, "groups": _simulated}[name](name, size)


def _simulated(name, users):
    config = comparison_config(
        "simulated_preferences",
        "logistic",
        rounds=400,
        eval_every=20,
        learning_rate=1.0,
        learning_rates=_RATES,
    )
    config.algorithms = ("local", "fedavg", "fedavg_ft", "ditto", "perfedavg", "fspo")
    options = config.data.options.simulated_preferences
    options.users, options.prompts = int(users or 1000), 25
    if name == "groups":
        options.rewards, options.alpha = 4, 0.01
    config.data.unseen_fraction = config.data.validation_fraction = 0.2
    config.batch_size = 16
    config.cohort.size = 100
    config.hparams.perfedavg.update({"alpha": 1.0, "adaptation_steps": 10})
    return config
