"""The methods, one file each. `ALGORITHMS` names them; tests and binaries go through it.

A method's factory takes the task, how clients train, and its hyper-parameters as keyword-only
arguments, from whose names and defaults the configs are made.
"""

from collections.abc import Callable

from pfljax.algorithms.apfl import apfl
from pfljax.algorithms.apple import apple
from pfljax.algorithms.ditto import ditto
from pfljax.algorithms.fedala import fedala
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.fedavg_ft import fedavg_ft
from pfljax.algorithms.fedbabu import fedbabu
from pfljax.algorithms.fedbn import fedbn
from pfljax.algorithms.fedcac import fedcac
from pfljax.algorithms.fedcp import fedcp
from pfljax.algorithms.fedem import fedem
from pfljax.algorithms.fedfomo import fedfomo
from pfljax.algorithms.fedgen import fedgen
from pfljax.algorithms.fedkd import fedkd
from pfljax.algorithms.fedpac import fedpac
from pfljax.algorithms.fedper import fedper
from pfljax.algorithms.fedproto import fedproto
from pfljax.algorithms.fedprox import fedprox
from pfljax.algorithms.fedrep import fedrep
from pfljax.algorithms.local import local
from pfljax.algorithms.perfedavg import perfedavg
from pfljax.algorithms.pfedhn import pfedhn
from pfljax.algorithms.pfedme import pfedme
from pfljax.algorithms.scaffold import scaffold
from pfljax.core import Algorithm

ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "local": local,
    "fedavg": fedavg,
    "fedavg_ft": fedavg_ft,
    "fedprox": fedprox,
    "scaffold": scaffold,
    "ditto": ditto,
    "apfl": apfl,
    "fedper": fedper,
    "fedrep": fedrep,
    "fedbabu": fedbabu,
    "perfedavg": perfedavg,
    "pfedme": pfedme,
    "fedproto": fedproto,
    "fedala": fedala,
    "fedcac": fedcac,
    "fedbn": fedbn,
    "fedem": fedem,
    "fedfomo": fedfomo,
    "apple": apple,
    "pfedhn": pfedhn,
    "fedpac": fedpac,
    "fedkd": fedkd,
    "fedgen": fedgen,
    "fedcp": fedcp,
}

# What the methods make personal, and how; each method stands in one family.
FAMILIES: dict[str, tuple[str, ...]] = {
    "no federation": ("local",),
    "one model": ("fedavg", "fedprox", "scaffold", "fedgen"),
    "one model, adapted": ("fedavg_ft", "perfedavg"),
    "second model": ("ditto", "apfl", "pfedme", "fedkd"),
    "body and head": ("fedper", "fedrep", "fedbabu", "fedpac", "fedcp"),
    "normalization": ("fedbn",),
    "element-wise mixing": ("fedala", "fedcac"),
    "mixtures of models": ("fedfomo", "apple", "fedem"),
    "hypernetwork": ("pfedhn",),
    "messages without a model": ("fedproto",),
}
