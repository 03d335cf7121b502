"""Preferences between two answers; users are clients, and models are linear in features.

    simulated: 1,000 users of Dirichlet(0.1) weights over ten rewards, 16 pairs each of 25 prompts
        with 8 answers, a fifth of the users held out (`simulated:10000` for 10,000 users); the
        three seeds split the pairs and choose the held-out users
    groups: the same with Dirichlet(0.01) over four rewards, so that most users have one of them
    prism: 141 persons of PRISM with ten pairs or more; the length of an answer, and 256 features of
        its words
    persona:easy, persona:mid, persona:hard: the personas of a tier of PersonaFeedback with ten
        pairs or more; the length, the cosines with the own and the mean persona, and 512 features

On PRISM and PersonaFeedback, 30 % of the questions are tested, and no answer to a tested question
is trained on. `prism:few` and `persona:TIER:few` have the length and the cosines only.
`prism:hidden_map` and `persona:TIER:hidden_map` train a map of the features for each user beside a
frozen common reward, which `config.adapter.base` names, by DPO (PAD).

Learning rates were chosen for each method on validation examples with the same number of values,
see `docs/results/preferences.md`, which has the commands for PRISM and PersonaFeedback. A minute
or two on two idle cores.

    python experiments/compare.py --config=configs/preferences.py:simulated --workdir=WORKDIR
    python experiments/copl.py --config=configs/preferences.py:simulated
"""

from pfljax.errors import UserError
from pfljax.training.study.config import comparison_config

_METHODS = ("local", "fedavg", "fedavg_ft", "ditto", "perfedavg", "fspo")
# Chosen on validation examples of `simulated` with seed 7, and used for `groups` too.
_RATES = {
    "local": 0.3,
    "fedavg": 3.0,
    "fedavg_ft": 1.0,
    "ditto": 1.0,
    "perfedavg": 0.3,
    "fspo": 0.3,
}
# The splits after that with seed 8 in which each person of PRISM has a training pair.
_PRISM_SEEDS = (10, 11, 15, 16, 17)
# The factor on the features of answers: with 1 / sqrt(d) all of them count as much as the length.
_SCALES = {"prism": 0.0625, "easy": 0.044, "mid": 1.0, "hard": 1.0}
# Chosen on validation pairs of a split that is not in the tables, as was the factor: the learning
# rates in the order of _METHODS, and the inner rate of Per-FedAvg.
_CHOSEN = {
    ("prism", "all"): (1.0, 3.0, 3.0, 1.0, 1.0, 3.0, 0.3),
    ("prism", "few"): (0.01, 0.01, 1.0, 1.0, 1.0, 0.1, 0.3),
    ("prism", "hidden_map"): (0.3,),
    ("easy", "all"): (0.01, 1.0, 1.0, 3.0, 1.0, 1.0, 0.03),
    ("easy", "few"): (0.01, 1.0, 1.0, 0.3, 1.0, 1.0, 0.03),
    ("easy", "hidden_map"): (0.1,),
    ("mid", "all"): (0.0003, 0.1, 0.1, 0.0003, 0.01, 0.0003, 0.003),
    ("mid", "few"): (0.3, 1.0, 1.0, 3.0, 1.0, 1.0, 0.03),
    ("mid", "hidden_map"): (0.1,),
    ("hard", "all"): (0.0003, 0.01, 0.1, 0.1, 0.1, 0.03, 0.03),
    ("hard", "few"): (3.0, 0.3, 0.3, 0.3, 1.0, 0.03, 0.03),
    ("hard", "hidden_map"): (0.3,),
}


def get_config(data: str = "simulated"):
    name, *rest = data.split(":")
    if name in ("simulated", "groups"):
        return _simulated(name, *rest)
    words = ("prism", *rest) if name == "prism" else tuple(rest)
    choice = (*words, "all")[:2]
    if name not in ("prism", "persona") or choice not in _CHOSEN or len(words) > 2:
        raise UserError(
            f"configs/preferences.py has no {data!r}: use simulated, groups, prism, persona:easy, "
            "persona:mid or persona:hard, the last four also with :few or :hidden_map."
        )
    return _recorded(name, *choice)


def _simulated(name, users=""):
    config = comparison_config(
        "simulated_preferences",
        "logistic",
        rounds=400,
        eval_every=20,
        learning_rate=1.0,
        learning_rates=_RATES,
    )
    config.algorithms = _METHODS
    options = config.data.options.simulated_preferences
    options.users, options.prompts = int(users or 1000), 25
    if name == "groups":
        options.rewards, options.alpha = 4, 0.01
    config.data.unseen_fraction = config.data.validation_fraction = 0.2
    config.batch_size = 16
    config.cohort.size = 100
    config.hparams.perfedavg.update({"alpha": 1.0, "adaptation_steps": 10})
    return config


def _recorded(name, part, kind):
    """Returns the config of PRISM or of a tier; `part` and `kind` are a key of `_CHOSEN`."""
    chosen = _CHOSEN[part, kind]
    data = "prism_pairs" if name == "prism" else "persona_feedback"
    config = comparison_config(
        data,
        "logistic",
        rounds=50,
        eval_every=50,
        learning_rate=chosen[0],
        seeds=_PRISM_SEEDS if name == "prism" else range(5),
    )
    options = config.data.options[data]
    if name == "persona":
        options.tier = part
    options.answer_scale = _SCALES[part]
    if kind == "few":
        options.features = "length" if name == "prism" else "persona"
    config.data.split = "by_item"
    config.data.test_fraction, config.data.validation_fraction = 0.3, 0.2
    config.batch_size = 32
    config.zero_init = True
    config.selection.which_round = "last"
    if kind == "hidden_map":
        config.algorithms = ("local",)
        config.zero_init = False  # the map starts at the common reward
        config.adapter.update({"name": "hidden_map", "rank": 4, "head": "frozen"})
        config.preference.update({"loss": "dpo", "beta": 0.1, "reference": True})
        return config
    config.algorithms = _METHODS
    config.learning_rates.update(dict(zip(_METHODS, chosen, strict=False)))
    config.hparams.perfedavg.update({"alpha": chosen[-1], "adaptation_steps": 10})
    return config
