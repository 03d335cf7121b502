"""Keys for single methods, batches of small clients, a zero start, and how sweeps choose."""

import numpy as np
import pytest

import pfljax
from pfljax.training import sweep
from pfljax.training.run import writers
from pfljax.training.study import config as config_lib
from pfljax.training.study import config_checks, config_runs, experiment

DRAW = np.random.default_rng(1)
SIZES = np.array([6, 20, 33])
CLIENTS = np.repeat([0, 1, 2], SIZES)
INPUTS = DRAW.normal(size=(SIZES.sum(), 2)).astype(np.float32)
SCORES = INPUTS @ [1.0, -2.0] + CLIENTS


@pytest.fixture(scope="module")
def scores():
    return pfljax.from_arrays(
        INPUTS, SCORES, CLIENTS, task="regression", validation_fraction=0.2, split="plain"
    )


def test_small_clients_train_on_one_batch_from_a_zero_start(scores):
    """Local training against NumPy; with shuffling, where one batch holds all examples."""
    settings = {"rounds": 3, "model": "logistic", "zero_init": True, "learning_rate": 0.1}
    run = pfljax.fit(
        "local", scores, batch_size=32, drop_remainder=True, shrink_batch=True, **settings
    )
    x = (scores.inputs - scores.mean) / scores.std
    y = (scores.targets - scores.target_mean) / scores.target_std
    assert scores.train.sizes.max() < 32
    for client in range(3):
        own = slice(scores.train.offsets[client], None)
        size = scores.train.sizes[client]
        w, b = np.zeros(2), 0.0
        for _ in range(3):
            error = x[own][:size] @ w + b - y[own][:size]
            w, b = w - 0.1 * 2 * x[own][:size].T @ error / size, b - 0.1 * 2 * error.mean()
        head = run.client(client).params["head"]
        np.testing.assert_allclose(head["kernel"][:, 0], w, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(head["bias"][0], b, rtol=1e-4, atol=1e-6)
    with pytest.raises(pfljax.UserError, match="No client would train"):
        pfljax.fit("local", scores, batch_size=64, drop_remainder=True, **settings)
    with pytest.raises(pfljax.UserError, match="needs models that start with different params"):
        pfljax.fit("ifca", scores, **settings)
    with pytest.raises(pfljax.UserError, match="changes nothing without"):
        pfljax.fit("local", scores, shrink_batch=True, **settings)


def test_batches_of_large_clients_are_not_shrunk(scores):
    """Two batches of 8 of a client with 16 to 23 examples; the rest of an epoch is dropped."""
    settings = {"rounds": 1, "model": "logistic", "batch_size": 8, "drop_remainder": True}
    plain = pfljax.fit("local", scores, **settings)
    shrunk = pfljax.fit("local", scores, shrink_batch=True, **settings)
    for client in (1, 2):
        np.testing.assert_array_equal(
            plain.client(client).outputs(INPUTS), shrunk.client(client).outputs(INPUTS)
        )
    assert not np.array_equal(plain.client(0).outputs(INPUTS), shrunk.client(0).outputs(INPUTS))


def test_keys_of_single_methods(scores, tmp_path):
    common = {"rounds": 2, "model": "logistic", "learning_rate": 0.1}
    own = {"fedprox": {"server_optimizer": {"momentum": 0.5}, "batch_size": 5}}
    found = pfljax.compare(
        ["fedavg", "fedprox"], scores, seeds=(0,), workdir=tmp_path, per_method=own, **common
    )
    alone = pfljax.fit(
        "fedprox", scores, server_optimizer={"momentum": 0.5}, batch_size=5, **common
    )
    np.testing.assert_array_equal(
        found.run("fedprox", 0).client(1).outputs(INPUTS), alone.client(1).outputs(INPUTS)
    )
    assert found.run("fedavg", 0).config.batch_size == 10
    # The stored config of a run has its keys, and is resumed with them.
    again = pfljax.compare(
        ["fedavg", "fedprox"], scores, seeds=(0,), workdir=tmp_path, per_method=own, **common
    )
    assert again.table().equals(found.table())


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"server_optimizer": {"momentm": 0.9}}, "Did you mean 'server_optimizer.momentum'"),
        ({"rounds": "many"}, "must be of the type of config.rounds"),
        ({"data": {"alpha": 1.0}}, "the same for all methods"),
    ],
)
def test_keys_of_single_methods_that_are_refused(keys, message):
    config = config_lib.default_config()
    with config.unlocked():
        config.per_method.ditto = keys
    with pytest.raises(pfljax.UserError, match=message):
        experiment.check(config)


def test_a_sweep_chooses_by_the_mean_and_the_round_of_the_config(tmp_path):
    writers.write_json(tmp_path / "result.json", {"score_name": "mse", "more_is_better": False})
    rows = [
        {
            "round": number,
            "personal/validation_mse_weighted": weighted,
            "personal/validation_mse_unweighted": unweighted,
            "personal/test_mse_weighted": weighted + 10,
            "personal/test_mse_unweighted": unweighted + 10,
        }
        for number, weighted, unweighted in ((0, 1.0, 4.0), (1, 2.0, 3.0), (2, 3.0, 5.0))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{writers.json.dumps(r)}\n" for r in rows))
    assert sweep.scores(tmp_path) == (1.0, 11.0)
    assert sweep.scores(tmp_path, mean="unweighted") == (3.0, 13.0)
    assert sweep.scores(tmp_path, mean="unweighted", which_round="last") == (5.0, 15.0)


def test_a_scenario_changes_keys_of_the_config():
    config = config_lib.default_config()
    assert list(config_runs.scenarios(config)) == [""]
    with config.unlocked():
        config.scenarios = {"a": {}, "b": {"data": {"alpha": 0.5}, "per_method": {"ditto": {}}}}
    found = config_runs.scenarios(config)
    assert [(name, each.data.alpha) for name, each in found.items()] == [("a", 0.1), ("b", 0.5)]
    config_checks.check(found["b"])
    with pytest.raises(pfljax.UserError, match="a, b, which only the command compare runs"):
        config_checks.check(config)


@pytest.mark.parametrize(
    "scenarios, message",
    [
        ({"a": {"data": {"alpah": 0.5}}}, "Did you mean 'data.alpha'"),
        ({"a": {"rounds": "many"}}, "must be of the type of config.rounds"),
        ({"a": {"algorithms": ("local",)}}, "which all scenarios share"),
        ({"a": 3}, "it must have keys"),
        ({"a b": {}}, "use letters, digits"),
    ],
)
def test_scenarios_that_are_refused(scenarios, message):
    config = config_lib.default_config()
    with config.unlocked():
        config.scenarios = scenarios
    with pytest.raises(pfljax.UserError, match=message):
        config_runs.scenarios(config)


@pytest.mark.parametrize("mean, expected", [("unweighted", 5.0), ("weighted", 4.0)])
def test_each_client_of_a_sweep_chooses_by_its_own_validation_score(tmp_path, mean, expected):
    directories = [tmp_path / "a", tmp_path / "b"]
    # The third client is held out, and the fourth has no test examples.
    validation = ([1.0, 9.0, 0.0, 0.0], [2.0, 8.0, 9.0, 9.0])
    test = ([3.0, 5.0, 90.0, np.nan], [4.0, 7.0, 80.0, np.nan])
    for directory, of_validation, of_test in zip(directories, validation, test, strict=True):
        directory.mkdir()
        writers.write_json(directory / "result.json", {})
        np.savez(
            directory / "clients.npz",
            test_size=[3, 1, 5, 0],
            unseen=[False, False, True, False],
            personal_validation_mse=of_validation,
            personal_test_mse=of_test,
        )
    found = sweep._chosen_by_each_client(directories, "mse", -1, mean)
    assert found == expected
    writers.write_json(directories[0] / "result.json", {"diverged": {}})
    assert np.isnan(sweep._chosen_by_each_client(directories, "mse", -1, mean))


def test_a_sweep_with_data_of_each_seed(tmp_path):
    """Its runs are those of single runs, each on the splits of its seed."""
    settings = {"rounds": 2, "learning_rate": 0.1, "model": "logistic"}
    settings["data"] = {"partition": "iid", "num_clients": 3}
    config = config_lib.default_config()
    pfljax.sweep(
        "local",
        "digits",
        {"learning_rate": [0.1, 0.2]},
        seeds=(0, 1),
        vary_data=True,
        workdir=tmp_path,
        **settings,
    )
    for seed in (0, 1):
        alone = pfljax.fit(
            "local",
            "digits",
            seed=seed,
            **{**settings, "data": {**settings["data"], "seed": config.data.seed + seed}},
        )
        path = tmp_path / "local" / "local=0.1" / f"seed_{seed}"
        swept = writers.read_json(path / "result.json")
        assert swept["personal_accuracy"] == pytest.approx(alone.result["personal_accuracy"])
