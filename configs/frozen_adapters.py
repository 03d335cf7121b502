"""Seven kinds of adapters of a frozen network, each with eight methods, on POPQUORN.

Whether an annotator rates a comment above 1, from frozen features of the comment; the annotators
are the clients, and the texts are split. The base is a network with 64 hidden units that FedAvg has
trained on the same split (`configs/popquorn.py:hidden`); on it, each method trains an adapter and
the head, for 50 rounds of one local epoch. After the colon is the kind of adapter.

    python experiments/compare.py --config=configs/popquorn.py:hidden --workdir=BASES \\
        --config.data.dir=DIRECTORY --config.algorithms="('fedavg',)"
    for seed in 0 1 2; do
        python -c "import pfljax, sys; run = pfljax.open_run(sys.argv[1]); \\
            run.global_model().save(sys.argv[2])" BASES/fedavg/seed_$seed BASES/$seed.safetensors
    done
    python experiments/compare.py --config=configs/frozen_adapters.py:lora --workdir=WORKDIR/lora \\
        --config.data.dir=DIRECTORY --config.adapter.base='BASES/{seed}.safetensors'
    python experiments/users.py --workdir=WORKDIR --against=bias/fedavg_ft

The table, and how the learning rates were chosen: docs/results/frozen_adapters.md.
"""

from pfljax.training.study.config_values import require_known
from pfljax.training.study.personalization import row_config

_METHODS = ("local", "fedavg", "fedavg_ft", "fedper", "fedrep", "ditto", "apfl", "pfedhn")
_KINDS = {
    "head": {},
    "bias": {},
    "ia3": {},
    "lora": {"rank": 4},
    "houlsby": {"width": 8},
    "hidden_map": {"rank": 4},
    "basis": {"rank": 16},
}
# Learning rates by adapter and method.
_RATES: dict[str, dict[str, float]] = {
    "head": {
        "fedavg": 0.003,
        "ditto": 0.03,
        **dict.fromkeys(("local", "apfl"), 0.1),
        **dict.fromkeys(("fedavg_ft", "pfedhn"), 0.3),
    },
    "bias": {
        **dict.fromkeys(("fedavg", "fedrep"), 0.003),
        **dict.fromkeys(("local", "ditto"), 0.01),
        **dict.fromkeys(("fedper", "apfl"), 0.03),
        "fedavg_ft": 0.1,
        "pfedhn": 0.3,
    },
    "ia3": {
        **dict.fromkeys(("fedavg", "fedrep"), 0.003),
        **dict.fromkeys(("local", "fedper", "ditto"), 0.03),
        "apfl": 0.1,
        **dict.fromkeys(("fedavg_ft", "pfedhn"), 0.3),
    },
    "lora": {
        **dict.fromkeys(("fedavg", "fedrep"), 0.003),
        **dict.fromkeys(("local", "ditto", "apfl"), 0.03),
        **dict.fromkeys(("fedavg_ft", "fedper"), 0.1),
        "pfedhn": 0.3,
    },
    "houlsby": {
        **dict.fromkeys(("fedavg", "fedrep"), 0.003),
        "ditto": 0.01,
        **dict.fromkeys(("local", "apfl"), 0.03),
        **dict.fromkeys(("fedavg_ft", "fedper"), 0.1),
        "pfedhn": 0.3,
    },
    "hidden_map": {
        **dict.fromkeys(("fedavg", "fedrep"), 0.003),
        **dict.fromkeys(("local", "fedper", "ditto"), 0.03),
        **dict.fromkeys(("fedavg_ft", "apfl"), 0.1),
        "pfedhn": 1,
    },
    "basis": {
        **dict.fromkeys(("fedavg", "fedrep"), 0.003),
        **dict.fromkeys(("local", "ditto"), 0.03),
        **dict.fromkeys(("fedper", "apfl"), 0.1),
        **dict.fromkeys(("fedavg_ft", "pfedhn"), 0.3),
    },
}


def get_config(kind: str = "lora"):
    require_known("kind of adapter of this config", kind, _KINDS)
    config = row_config("popquorn", "hidden", rounds=50, batch_size=10, tuned={})
    config.adapter.update({"name": kind, **_KINDS[kind]})
    # Without an adapter, the head is all that is trained, and nothing is left for both sides.
    shared = ("fedper", "fedrep")
    config.algorithms = tuple(m for m in _METHODS if kind != "head" or m not in shared)
    config.hparams.fedavg_ft.fine_tuning_epochs = 5
    config.hparams.pfedhn.rate = 0.03
    config.learning_rates.update(_RATES.get(kind, {}))
    return config
