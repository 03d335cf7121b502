"""Rounds of the engine equal the plain loops of `plain_loops.py`, written from the papers.

`plain_rounds.py` compares them. Another method may have its loop in its own file, in a test
`test_plain_loop`.
"""

import functools
import importlib

import method_files
import numpy as np
import plain_loops as plain
import plain_rounds
import pytest

from pfljax.algorithms import ALGORITHMS

GENERATED = {"weight": 0.7, "decay": 0.5, "first_round": 1, "diversity": 0.3}
GENERATED |= {"generator_steps": 2, "generator_rate": 0.01}
ENVELOPES = {"lam": 2.0, "inner_steps": 3, "inner_rate": 0.1, "beta": 1.3, "weight_decay": 0.01}
# What FedGen draws, the same in every step: labels and noise.
DRAW = np.random.default_rng(8)
DRAWN = {
    who: (DRAW.integers(0, plain.CLASSES, count).astype(np.int32), DRAW.normal(size=(count, 3)))
    for who, count in (("client", plain.BATCH), ("server", 5))
}

# The part of the server's state that a loop has too.
VIEWS = {
    "fedcac": lambda server: server.average,  # the threshold is kept in single precision
    "fedgen": lambda server: (server.average, server.generator, server.label_shares),
}

# Hyper-parameters of the method, and of its plain loop where these differ.
CASES = {
    "fedfomo": (
        {"models": 4, "validation_share": 0.35, "exploration": 0.0},
        {"validation_share": 0.35},
    ),
    "apple": ({"relation_rate": 0.05, "mu": 0.5, "duration": 0.7, "epsilon": 0.1},) * 2,
    "pfedme": ({**ENVELOPES, "train_to_evaluate": True}, ENVELOPES),
    "apfl": ({"alpha": 0.4, "alpha_rate": 0.2},) * 2,
    "fedala": ({"eta": 2.0, "share": 0.7, "first_passes": 14, "settled": 0.01},) * 2,
    "perfedavg": ({"alpha": 0.2, "hessian_free": False, "delta": 0.01, "adaptation_steps": 3},) * 2,
    "perfedavg hessian_free": (
        {"alpha": 0.2, "hessian_free": True, "delta": 0.01, "adaptation_steps": 3},
    )
    * 2,
    "fedem": ({"learners": 2, "absent_count": False},) * 2,
    "fedem absent_count": ({"learners": 2, "absent_count": True},) * 2,
    "pfedhn": (
        {"hidden": 6, "layers": 2, "embedding_size": 3, "rate": 0.05, "momentum": 0.5}
        | {"weight_decay": 0.01, "clip": 2.0},
        {"rate": 0.05, "momentum": 0.5, "weight_decay": 0.01, "clip": 2.0},
    ),
    "fedrep": ({"head_epochs": 2, "weight_by_size": True},) * 2,
    "fedrep uniform": ({"head_epochs": 2, "weight_by_size": False},) * 2,
    "ditto": ({"lam": 0.5, "personal_epochs": 2},) * 2,
    "fedavg": ({},) * 2,
    "fedprox": ({"mu": 0.5},) * 2,
    "scaffold": ({},) * 2,
    "fedper": ({},) * 2,
    "fedbabu": ({"fine_tuning_epochs": 2},) * 2,
    "fedbn": ({},) * 2,
    "fedproto": ({"lam": 0.7},) * 2,
    "fedpac": ({"lam": 0.7, "head_epochs": 2},) * 2,
    "fedkd": ({"distillation": 0.7, "hidden": 1.3, "energy_start": 0.6, "energy_end": 0.9},) * 2,
    "fedcp": ({"lam": 0.7, "gumbel": 0.0}, {"lam": 0.7}),
    "fedcac": ({"tau": 0.5, "beta": 2.0},) * 2,
    "fedgen": (
        {**GENERATED, "generator_batch": 5, "noise_size": 3, "hidden_size": 4},
        {**GENERATED, "drawn": DRAWN},
    ),
    "local": ({},) * 2,
    "fedavg_ft": ({"fine_tuning_epochs": 2},) * 2,
}


def test_clients_join_late_and_take_part_again():
    seen = [k for cohort in plain_rounds.cohorts() for k in cohort]
    assert len(seen) == 6 and set(seen) == set(range(4))
    assert not set(seen[:2]) & set(seen[2:4]) or set(seen[2:4]) != set(seen[:2])


@pytest.mark.parametrize("case", CASES)
def test_rounds_equal_the_plain_loop(case, monkeypatch):
    name, (ours, theirs) = case.split()[0], CASES[case]
    if name == "fedgen":
        drawn = {len(labels): (labels, noise) for labels, noise in DRAWN.values()}
        module = importlib.import_module("pfljax.algorithms.fedgen")
        monkeypatch.setattr(module, "draw", lambda key, shares, count, *rest: drawn[count])
    loop = functools.partial(getattr(plain, name), **theirs)
    plain_rounds.check(name, loop, ours, VIEWS.get(name, lambda server: server))


def test_every_method_has_one_plain_loop():
    here = {case.split()[0] for case in CASES}
    in_own_files = {
        name
        for name in ALGORITHMS
        if any(test.startswith("test_plain_loop") for test in method_files.tests_of(name))
    }
    assert here | in_own_files == set(ALGORITHMS) and not here & in_own_files
