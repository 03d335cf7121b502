"""Params of held-out users: given items, conditions, selection, generation, fits and the table."""

import functools
import importlib.util
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import data, models, tasks
from pfljax.errors import UserError
from pfljax.training.study import config as config_lib
from pfljax.training.study import config_runs

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))  # as Python does for a script in it
from held_out import generation, given_items  # noqa: E402

TRAINING, HELD_OUT = 40, 12


def load():
    """Returns the script as a module."""
    spec = importlib.util.spec_from_file_location("weights", EXPERIMENTS / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load()


@functools.cache
def shifted():
    """Returns users whose inputs have a mean of their own, and whose labels are 1 above it.

    No single linear model fits all of them, and unlabelled items say which one fits a user. Returns
    the data set, and the params that fit each user.
    """
    rng = np.random.default_rng(0)
    shift = rng.uniform(-3, 3, TRAINING + HELD_OUT)
    x = shift[:, None] + rng.uniform(-1, 1, (TRAINING + HELD_OUT, 40))
    dataset = data.from_arrays(
        x.reshape(-1, 1).astype(np.float32),
        (x > shift[:, None]).astype(np.int32).ravel(),
        np.repeat(np.arange(TRAINING + HELD_OUT), 40),
        normalize=False,
    )
    dataset = dataset._replace(num_unseen=HELD_OUT)
    # The logits are 0 and 8 (x - shift).
    kernel = np.tile([[[0.0, 8.0]]], (TRAINING, 1, 1))
    bias = np.stack([np.zeros(TRAINING), -8 * shift[:TRAINING]], axis=1)
    head = {"kernel": jnp.array(kernel, jnp.float32), "bias": jnp.array(bias, jnp.float32)}
    return given_items.with_given_items(dataset, 5, 0), {"head": head}


@functools.cache
def study():
    dataset, params = shifted()
    task = tasks.classification(models.logistic((1,), 2), num_classes=2)
    return generation.Study(dataset, task, np.arange(HELD_OUT) % 2 == 0, params)


def test_held_out_users_keep_a_few_items_and_their_tests():
    whole = data.load("digits", partition="iid", num_clients=10, unseen_fraction=0.3)
    cut = given_items.with_given_items(whole, 5, 0)
    assert cut.train.sizes[7:].tolist() == [5] * 3 and not cut.validation.sizes[7:].any()
    for client in range(10):
        tested = [given_items.rows_of(each, "test", client) for each in (whole, cut)]
        np.testing.assert_array_equal(whole.inputs[tested[0]], cut.inputs[tested[1]])
        before, after = (
            {each.inputs[row].tobytes() for row in given_items.rows_of(each, "train", client)}
            for each in (whole, cut)
        )
        assert after <= before and (after == before) == (client < 7)
    other = given_items.with_given_items(whole, 5, 1)
    rows = given_items.rows_of(cut, "train", 8)
    assert not np.array_equal(cut.inputs[rows], other.inputs[rows])
    with pytest.raises(UserError, match="--items=500 needs as many"):
        given_items.with_given_items(whole, 500, 0)
    untested = whole._replace(test=whole.test._replace(sizes=np.zeros(10, np.int32)))
    with pytest.raises(UserError, match="and 0 test examples"):
        given_items.with_given_items(untested, 5, 0)


def test_padding_counts_neither_as_right_nor_as_wrong():
    dataset = data.load("digits", partition="dirichlet", num_clients=6, seed=1)
    users = given_items.users_of(dataset, "test", range(6))
    sizes = dataset.test.sizes
    assert users.mask.sum(axis=1).tolist() == sizes.tolist() and len(set(sizes)) > 1
    np.testing.assert_allclose(users.fraction(np.ones(users.mask.shape, bool)), 1)
    zeros = [
        np.mean(dataset.targets[given_items.rows_of(dataset, "test", c)] == 0) for c in range(6)
    ]
    np.testing.assert_allclose(users.fraction(users.targets == 0), zeros)


def test_the_condition_of_a_held_out_user_is_the_mean_of_its_given_items():
    dataset, _ = shifted()
    settings = generation.Settings(subsets=3, condition_size=16)
    known, users, new = generation.conditions_of(dataset, settings, 0)
    assert known.shape == (3 * TRAINING, 1) and new.shape == (HELD_OUT, 1)
    assert users.tolist() == np.repeat(np.arange(TRAINING), 3).tolist()
    means = study().given.inputs.mean(axis=1)[:, 0]
    assert abs(np.corrcoef(means, new[:, 0])[0, 1]) > 0.9999
    assert abs(np.std(np.array(known)) - 1) < 0.01


def test_a_setting_is_chosen_by_validation_users_alone():
    """Test users are right with the second setting only, validation users with the first only."""
    own, validation = study(), study().is_validation
    right = np.array([own.test.targets[user, 0] for user in range(HELD_OUT)])

    def rows_of(first):
        """Predicts one label with certainty: the right one of the first test example, or not."""
        label = np.where(validation == first, right, 1 - right)
        bias = 9.0 * np.eye(2)[label]
        return jnp.array(np.concatenate([bias, np.zeros((HELD_OUT, 2))], axis=1), jnp.float32)

    scores = {first: own.accuracies(rows_of(first)) for first in (True, False)}
    found = own.best("nothing", {"first": (False, True)}, rows_of)
    better = scores[True][validation].mean() > scores[False][validation].mean()
    assert found.setting == {"first": better}
    np.testing.assert_array_equal(found.accuracies, scores[better])


def test_unlabelled_items_give_the_params_where_they_tell_the_user(monkeypatch):
    """With the mean params users are near chance; with generated ones most answers are right."""
    monkeypatch.setattr(generation, "_RIDGE", {"size": (2,), "penalty": (0.01,)})
    monkeypatch.setattr(generation, "_DIFFUSION", {"size": (1,), "steps": (600,)})
    dataset, _ = shifted()
    conditions = generation.conditions_of(dataset, generation.Settings(), 0)
    found = generation.generated(study(), *conditions, 4, 0)
    mean = study().accuracies(jnp.tile(study().basis.mean, (HELD_OUT, 1)))
    assert mean.mean() < 0.7
    assert list(found) == [
        "ridge regression",
        "diffusion of coefficients, one sample",
        "diffusion of coefficients, mean of 4",
        "diffusion of an autoencoder's latents, one sample",
        "diffusion of an autoencoder's latents, mean of 4",
    ]
    for name, row in found.items():
        assert row.uses == "unlabelled" and row.accuracies.mean() > 0.78, (name, row)


def test_labelled_items_fit_the_bias_and_the_coefficients(monkeypatch):
    monkeypatch.setattr(generation, "_BIAS", {"rate": (1.0,), "steps": (60,)})
    monkeypatch.setattr(generation, "_FITTED", {"size": (1,), "steps": (60,)})
    common = study().basis.mean
    found = generation.fitted(study(), common)
    before = study().losses(jnp.tile(common, (HELD_OUT, 1)))
    assert before.mean() > 0.6
    for name, row in found.items():
        assert row.uses == "labelled" and row.accuracies.mean() > 0.75, (name, row)


def test_a_user_counts_once_in_the_table():
    def rows(common, known, other):
        references = dict.fromkeys((generation.FITTED_BIAS, "fedavg_ft"), known)
        values = {script._COMMON: common, **references, "other": other}
        return {name: generation.Row("nothing", np.array(row)) for name, row in values.items()}

    first = rows([0.5, 0.5], [0.5, 0.5], [1.0, 0.5]), ["ann", "bob"]
    second = rows([0.5, 0.0], [0.5, 0.5], [0.5, 0.5]), ["ann", "eve"]
    lines = script.table([first, second], 0)
    assert lines[0] == "3 test users in 2 splits"
    # ann has .75; the means over users are (.75 + .5 + .5) / 3 and (.5 + .5 + 0) / 3.
    assert "| other | nothing | 0.583 | +0.250 (" in lines[-1]
    assert lines[-1].split("+")[0] == "| other | nothing | 0.583 | "


def test_the_whole_experiment_on_the_digits(tmp_path, monkeypatch):
    """All rows, from the features of a base; what they say is tested above."""
    for name in ("_RIDGE", "_DIFFUSION", "_FITTED", "_BIAS"):
        small = {key: values[:1] for key, values in getattr(generation, name).items()}
        small.update({"steps": (3,)} if "steps" in small else {})
        monkeypatch.setattr(generation, name, small)
    monkeypatch.setattr(generation, "_STEPS_OF_AUTOENCODER", 3)
    monkeypatch.setattr(script, "_OF_METHODS", dict.fromkeys(script._OF_METHODS, {}))
    config = config_lib.comparison_config(
        "digits", "mlp", partition="iid", rounds=1, learning_rate=0.1
    )
    config.data.num_clients, config.data.unseen_fraction, config.eval_every = 10, 0.4, 1
    config.model.widths = (6,)
    config.hparams.pefll.embedding.update({"name": "mlp", "widths": (6,)})
    own = config_runs.of_run(config, "fedavg", 1)
    settings = generation.Settings(subsets=2, condition_size=3, samples=2)
    rows, users = script.one_seed(own, tmp_path, [0.1, 0.3], settings)
    assert len(users) == 2 and all(user.startswith("1/") for user in users)
    assert len(rows) == 15
    for name, row in rows.items():
        assert row.accuracies.shape == (2,) and np.all(row.accuracies <= 1), name
    assert rows[script._COMMON].uses == "nothing" and rows["pefll"].uses == "labelled"
    assert len(script.table([(rows, users)], 0)) == 4 + len(rows)
    none = config_runs.of_run(config, "fedavg", 1)
    none.data.unseen_fraction = 0.0
    with pytest.raises(UserError, match="set config.data.unseen_fraction"):
        script.one_seed(none, tmp_path, [0.1, 0.3], settings)


def test_losses_are_the_cross_entropy_of_each_user_s_given_items():
    dataset, params = shifted()
    own = study()
    rows = jnp.tile(own.params[:1], (HELD_OUT, 1))
    one = jax.tree.map(lambda leaf: leaf[0], params)
    logits = own.given.inputs[3] @ one["head"]["kernel"] + one["head"]["bias"]
    picked = jax.nn.log_softmax(logits)[np.arange(5), own.given.targets[3]]
    np.testing.assert_allclose(own.losses(rows)[3], -picked.mean(), rtol=1e-5)
