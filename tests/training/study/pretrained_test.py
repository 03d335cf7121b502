"""Runs whose training starts with the params in a file."""

import jax
import numpy as np
import pytest

from pfljax.engine.clients import on_device
from pfljax.errors import UserError
from pfljax.models import params_file
from pfljax.training import comparison
from pfljax.training.run import loop, runtime
from pfljax.training.study import experiment, vectorized
from pfljax.training.study.config import default_config


def config(**changes):
    made = default_config()
    settings = {
        "algorithm": "fedavg",
        "rounds": 2,
        "eval_every": 2,
        "checkpoint_every": 1,
        "data.num_clients": 4,
        "data.alpha": 1.0,
        "engine.devices": 2,
        "engine.rounds_per_call": 2,
        "engine.clients_per_chunk": "2",
    }
    made.model.widths = (5,)
    made.update_from_flattened_dict(settings | changes)
    return made


@pytest.fixture(scope="module")
def dataset():
    return experiment.build_dataset(config())


@pytest.fixture(scope="module")
def params(dataset):
    """Params that no seed of these runs would draw."""
    task = experiment.build(config(), dataset).task
    return jax.tree.map(np.asarray, task.init(jax.random.key(1234)))


@pytest.fixture(params=["npz", "safetensors"])
def file(request, tmp_path, params):
    params_file.save(tmp_path / f"start.{request.param}", params)
    return tmp_path / f"start.{request.param}"


def first_state(built, seed=0):
    state = built.programs.init(built.examples, jax.random.key(seed))
    return on_device.to_host(state, built.dataset.num_clients)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_training_starts_with_the_file_whatever_the_seed(file, params, dataset):
    built = experiment.build(config(init_from=str(file)), dataset)
    for seed in (0, 1):
        assert_equal(first_state(built, seed).server.params, params)
    assert built.frozen_digest is not None


def test_the_params_are_an_input_of_the_program(file, params, dataset):
    built = experiment.build(config(init_from=str(file)), dataset)
    first_state(built)
    twice = built.inputs._replace(frozen=jax.tree.map(lambda leaf: 2 * leaf, built.inputs.frozen))
    counter = runtime.CompilationCounter()
    state = built.programs.init.with_fixed(twice)(built.examples, jax.random.key(0))
    counter.close()
    assert counter.programs == 0
    shared = on_device.to_host(state, 4).server.params
    assert_equal(shared, jax.tree.map(lambda leaf: 2 * leaf, params))


def test_rounds_leave_the_input_alone(file, params, dataset):
    """The state of the first round is donated, and its arrays are not those of the file."""
    built = experiment.build(config(init_from=str(file)), dataset)
    state = built.programs.init(built.examples, jax.random.key(0))
    state, _ = built.programs.run_rounds(state, built.examples, np.int32(2), np.int32(2))
    assert not np.allclose(
        on_device.to_host(state, 4).server.params["head"]["kernel"], params["head"]["kernel"]
    )
    assert_equal(first_state(built).server.params, params)


@pytest.mark.parametrize("name", ["local", "fedper", "fedproto", "fedcp", "apple", "pfedhn"])
def test_methods_with_other_states_start_there_too(name, tmp_path, params, dataset):
    params_file.save(tmp_path / "start.npz", params)
    given = config(algorithm=name, init_from=str(tmp_path / "start.npz"))
    built = experiment.build(given, dataset)
    state = built.programs.init(built.examples, jax.random.key(0))
    evaluation = built.programs.evaluate(state, built.examples, np.int32(2))
    found = float(np.sum(evaluation["personal"]["test"]["loss"]))
    reference = experiment.build(config(init_from=str(tmp_path / "start.npz")), dataset)
    state = reference.programs.init(reference.examples, jax.random.key(0))
    wanted = reference.programs.evaluate(state, reference.examples, np.int32(2))
    wanted = float(np.sum(wanted["global"]["test"]["loss"]))
    if name == "pfedhn":  # generates models near them
        assert found == pytest.approx(wanted, rel=0.3) and found != wanted
    elif name == "fedproto":  # which begins with the head's outputs
        assert found == pytest.approx(wanted, rel=1e-5)
    elif name != "fedcp":  # whose policy splits the features before the head
        assert found == pytest.approx(wanted, rel=1e-5)
    else:
        server = on_device.to_host(built.programs.init(built.examples, jax.random.key(0)), 4).server
        arrays = [leaf for leaf in jax.tree.leaves(server) if leaf.shape == (64, 5)]
        assert any(np.array_equal(leaf, params["body"]["Dense_0"]["kernel"]) for leaf in arrays)


def test_a_run_is_resumed_with_the_same_file_and_with_no_other(file, params, dataset, tmp_path):
    given = {"init_from": str(file)}
    loop.run(experiment.build(config(**given), dataset), tmp_path / "run")
    longer = config(**given, rounds=3)
    result = loop.run(experiment.build(longer, dataset), tmp_path / "run", resume=True)
    assert result["rounds"] == 3
    params_file.save(file, jax.tree.map(lambda leaf: 2 * leaf, params))
    with pytest.raises(UserError, match="other initial parameters; set config.init_from as before"):
        built = experiment.build(config(**given, rounds=4), dataset)
        loop.run(built, tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="with another config: init_from is '' here"):
        loop.run(experiment.build(config(rounds=4), dataset), tmp_path / "run", resume=True)


def test_vectorized_runs_start_with_it_too(tmp_path, params, dataset):
    params_file.save(tmp_path / "start.npz", params)
    seeds = [config(seed=seed, init_from=str(tmp_path / "start.npz")) for seed in (0, 1)]
    first = experiment.build(seeds[0], dataset)
    built = vectorized.build(seeds, first)
    keys = jax.numpy.stack([jax.random.key(0), jax.random.key(1)])
    server = built.programs.init(built.examples, keys).server.params
    for run in (0, 1):
        assert_equal(jax.tree.map(lambda leaf, run=run: leaf[run], server), params)


@pytest.mark.parametrize("seeds_vary", ["everything", "training"])
def test_runs_of_a_comparison_start_with_the_files_of_their_seeds(seeds_vary, tmp_path, params):
    for seed in (0, 1):
        scaled = jax.tree.map(lambda leaf, seed=seed: (1 + seed) * leaf, params)
        params_file.save(tmp_path / f"{seed}.npz", scaled)
    given = config(init_from=str(tmp_path / "{seed}.npz"), seeds_vary=seeds_vary)
    given.algorithms, given.seeds = ("fedavg",), (0, 1)
    made = comparison.prepare(given, tmp_path / "runs")
    for seed in (0, 1):
        built = made.build(("fedavg", seed))
        assert built.config.init_from == str(tmp_path / f"{seed}.npz")
        scaled = jax.tree.map(lambda leaf, seed=seed: (1 + seed) * leaf, params)
        assert_equal(first_state(built, seed).server.params, scaled)
    with pytest.raises(UserError, match="config.init_from cannot differ between vectorized runs"):
        comparison.train(made, vmap_seeds=True)


def test_one_run_starts_with_the_file_of_its_seed(tmp_path, params, dataset):
    params_file.save(tmp_path / "3.npz", params)
    built = experiment.build(config(init_from=str(tmp_path / "{seed}.npz"), seed=3), dataset)
    assert built.config.init_from == str(tmp_path / "3.npz")
    assert_equal(first_state(built).server.params, params)


def other(params, **changes):
    return {**params, "head": {**params["head"], **changes}}


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda p: other(p, kernel=np.zeros((5, 9))),
            "start.* has an array 'head/kernel' of shape",
        ),
        (lambda p: {"head": p["head"]}, "has no array 'body/Dense_0/bias'"),
        (lambda p: other(p, more=np.zeros(2)), "has an array 'head/more' that the model has not"),
        (
            lambda p: other(p, bias=np.full(10, np.nan)),
            "'head/bias' with values that are not finite",
        ),
    ],
)
def test_other_arrays_are_refused(file, params, dataset, damage, message):
    params_file.save(file, damage(params))
    counter = runtime.CompilationCounter()
    with pytest.raises(UserError, match=message):
        experiment.build(config(init_from=str(file)), dataset)
    counter.close()
    assert counter.programs == 0


@pytest.mark.parametrize("content", [b"", b"no params at all", bytes(100)])
def test_other_files_are_refused(file, dataset, content):
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file.name} cannot be read as parameters"):
        experiment.build(config(init_from=str(file)), dataset)


def test_settings_that_exclude_a_file(file, dataset):
    given = {"init_from": str(file)}
    with pytest.raises(UserError, match="set config.adapter.base to the file"):
        experiment.build(config(**given, **{"adapter.name": "lora"}), dataset)
    with pytest.raises(
        UserError, match="FedEM needs models that start .*; remove config.init_from"
    ):
        experiment.build(config(**given, algorithm="fedem"), dataset)
    with pytest.raises(UserError, match="nothing.npz cannot be read"):
        experiment.build(config(init_from="nothing.npz"), dataset)
