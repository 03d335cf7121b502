"""How many clients are trained together: measured, weighed against padding, and remembered."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pfljax import core, models, tasks
from pfljax.data import FederatedDataset, Split
from pfljax.engine import programs, sampling
from pfljax.training.study import autotune
from pfljax.training.study.config import default_config


@pytest.fixture
def cache(tmp_path):
    """An empty directory in place of the compilation cache."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    jax.config.update("jax_compilation_cache_dir", before)


def test_padding_is_weighed_against_the_seconds_of_a_step():
    alike, apart = np.full(8, 5), np.array([40, 5, 5, 5, 4, 4, 4, 4])
    seconds = {1: 1.0, 4: 0.6}
    assert autotune.best(seconds, alike) == 4  # 8 * 5 * 0.6 < 8 * 5
    assert autotune.best(seconds, apart) == 1  # 0.6 * 4 * (40 + 4) > 71
    assert autotune.best({1: 1.0, 4: 1.0}, alike) == 1  # nothing gained: the simpler one


SIZES = np.array([20, 20, 20, 20, 3], np.int32)


def dataset():
    offsets = (np.cumsum(SIZES) - SIZES).astype(np.int32)
    nothing = Split(0 * SIZES, 0 * SIZES)
    return FederatedDataset(
        name="made up",
        inputs=np.zeros((SIZES.sum(), 6), np.float32),
        targets=np.zeros(SIZES.sum(), np.int32),
        train=Split(offsets, SIZES),
        validation=nothing,
        test=nothing,
        num_classes=3,
        mean=0.0,
        std=1.0,
    )


def made(task):
    """What builds a task, and the inputs of its programs."""
    return programs.always(None, task), programs.Inputs()


def choose(**changes):
    config = default_config()
    config.engine.clients_per_chunk = "auto"
    config.update_from_flattened_dict(changes)
    task = tasks.classification(models.mlp((6,), 3, widths=(4,)), num_classes=3)
    local = core.LocalTraining(optax.sgd(0.1), batch_size=10)
    plan = sampling.CohortPlan(num_clients=4, size=4)
    return autotune.choose(config, dataset(), *made(task), local, plan, jax.devices()[:1])


def test_a_choice_is_measured_once_and_remembered(cache, monkeypatch):
    chosen = choose()
    (file,) = cache.glob("*.json")
    ((key, seconds),) = json.loads(file.read_text()).items()
    assert set(seconds) <= {"1", "4"} and all(value > 0 for value in seconds.values())
    assert str(chosen) in seconds
    monkeypatch.setattr(autotune, "measure", None)  # would fail if it were called
    assert choose() == chosen
    for faster, slower in (("1", "4"), ("4", "1")):
        file.write_text(json.dumps({key: {faster: 1e-6, slower: 1e-3}}))
        assert choose() == int(faster)
    monkeypatch.undo()
    file.write_text("{")
    assert choose() in (1, 4)


def test_a_number_or_a_short_run_needs_no_measurement(cache, monkeypatch):
    monkeypatch.setattr(autotune, "measure", None)
    assert choose(**{"engine.clients_per_chunk": "3"}) == 3
    assert choose(**{"engine.clients_per_chunk": "30"}) == 4  # never more than there are
    assert choose(**{"engine.clients_per_chunk": "default"}) == 1
    assert choose(rounds=3) == 1
    assert not cache.exists()


def test_chunks_that_outgrow_the_memory_are_left_out(monkeypatch):
    calls = []

    def least_seconds(function, *args):
        calls.append(args)
        if len(calls) > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return 1.0

    monkeypatch.setattr(autotune, "_minimum_seconds", least_seconds)
    task = tasks.classification(models.mlp((6,), 3, widths=(4,)), num_classes=3)
    local = core.LocalTraining(optax.sgd(0.1), batch_size=2)
    rows = jax.ShapeDtypeStruct((6,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    found = autotune.measure(*made(task), local, *rows, [1, 4, 16], jax.devices()[:1])
    assert found == {1: 1 / (16 * 4)} and len(calls) == 2
    calls.append(None)
    with pytest.raises(jax.errors.JaxRuntimeError):  # not even one client fits
        autotune.measure(*made(task), local, *rows, [1, 4], jax.devices()[:1])


def test_sizes_are_those_of_a_typical_cohort():
    local = core.LocalTraining(optax.sgd(0.1), batch_size=10)
    all_clients = sampling.CohortPlan(num_clients=5, size=5)
    assert autotune._typical_steps(dataset(), local, all_clients, 1).tolist() == [2, 2, 2, 2, 1]
    assert autotune._typical_steps(dataset(), local, all_clients, 2).tolist() == [2, 2, 1]
    few = sampling.CohortPlan(num_clients=5, size=2)
    assert autotune._typical_steps(dataset(), local, few, 1).tolist() == [2, 2]
    by_steps = local._replace(num_steps=7)
    assert autotune._typical_steps(dataset(), by_steps, few, 1).tolist() == [7, 7]


def test_measuring_leaves_texts_alone():
    """Inputs that are ids, and targets at every position."""
    network = models.MODELS["lstm_lm"]((5,), 7, vocabulary=7, embedding=2, widths=(3,))
    task = tasks.next_token(network, num_classes=7)
    local = core.LocalTraining(optax.sgd(0.1), batch_size=2)
    row = jax.ShapeDtypeStruct((5,), jnp.int32)
    seconds = autotune.measure(*made(task), local, row, row, [1], jax.devices()[:1])
    assert seconds[1] > 0
