"""Comparisons of many methods: what stays in memory."""

import gc

import pytest

from pfljax.engine import mapping
from pfljax.training import comparison
from pfljax.training.run import compiling, writers
from pfljax.training.study.config import default_config


def num_compiled():
    """Returns the number of compiled programs in memory."""
    programs = [one for one in gc.get_objects() if isinstance(one, mapping.Program)]
    return sum(program._compiled is not None for program in programs)


@pytest.mark.parametrize("vmap_seeds", [False, True])
def test_programs_of_finished_methods_are_freed(tmp_path, monkeypatch, vmap_seeds):
    monkeypatch.setattr(compiling, "programs_fill_memory", lambda: True)
    free, counts = compiling.free_programs, []

    def counted():
        free()
        counts.append(num_compiled())

    monkeypatch.setattr(compiling, "free_programs", counted)
    config = default_config()
    config.rounds = config.eval_every = 1
    config.checkpoint_every = 0
    config.model.name, config.data.num_clients, config.data.partition = "logistic", 3, "iid"
    config.algorithms, config.seeds = ("local", "fedavg", "fedprox"), (0, 1)
    free()
    before = num_compiled()  # those of other tests in this process
    comparison.train(comparison.prepare(config, tmp_path), vmap_seeds=vmap_seeds)
    assert counts == [before, before]
    for method in config.algorithms:
        for seed in config.seeds:
            result = writers.read_json(tmp_path / method / f"seed_{seed}" / "result.json")
            assert result["rounds"] == 1
