"""The keys of a config, and the sentences that refuse what cannot be meant."""

import re

import jax
import numpy as np
import optax
import pytest

from pfljax.algorithms import ALGORITHMS
from pfljax.errors import UserError
from pfljax.training.run import runtime
from pfljax.training.study import config as config_lib
from pfljax.training.study import config_checks, experiment, optimizers
from pfljax.training.study.task import build_task


def made_task(config, dataset):
    make, frozen = build_task(config, dataset)
    return make(frozen)


def test_hyperparameters_are_read_from_the_signature():
    def method(task, local, *, lam=0.5, steps=3, exact=True, kind="soft", server_optimizer=None):
        pass

    expected = {"lam": 0.5, "steps": 3, "exact": True, "kind": "soft"}
    assert config_lib.hyperparameters(method) == expected


def test_every_method_has_its_hyperparameters_in_the_config():
    config = config_lib.default_config()
    assert set(config.hparams) == set(ALGORITHMS)
    for name, row in ALGORITHMS.items():
        assert config.hparams[name].to_dict() == config_lib.hyperparameters(row.factory)


def test_the_default_is_valid():
    config_checks.check(config_lib.default_config())


def test_running_statistics_are_kept_where_the_model_has_them():
    for name in ("mlp", "mlp_bn"):
        config = changed(**{"model.name": name, "data.num_clients": 5})
        task = made_task(config, experiment.build_dataset(config))
        assert experiment.build_local_training(config, task).observe is task.observe
        assert (task.observe is None) == (name == "mlp")


def test_batch_normalization_wants_two_examples_in_a_batch():
    toy = {"model.name": "mlp_bn", "data.num_clients": 5}
    config = changed(**toy, batch_size=1)
    dataset = experiment.build_dataset(config)
    with pytest.raises(UserError, match="config.batch_size is 1, but batch normalization"):
        experiment.build(config, dataset)
    single = dataset._replace(train=dataset.train._replace(sizes=np.ones(5, np.int32)))
    with pytest.raises(UserError, match="No client has more than one training example"):
        experiment.build(changed(**toy), single)
    for accepted in (changed(**{**toy, "model.name": "mlp"}, batch_size=1), changed(**toy)):
        task = made_task(accepted, dataset)
        experiment._require_statistics(accepted, dataset, task)


def test_batches_of_an_evaluation_are_no_larger_than_clients():
    config = changed(**{"data.num_clients": 5})
    dataset = experiment.build_dataset(config)
    nothing = dataset.validation._replace(sizes=np.zeros(5, int))
    for size, batch in ((33, 17), (32, 32), (7, 7), (65, 22)):
        own = dataset.test._replace(sizes=np.array([size, 3, 1, 1, 1]))
        clients = dataset._replace(test=own, validation=nothing)
        assert experiment.eval_batch_size(config, experiment.bounds_of([clients])) == batch


def test_a_config_with_which_no_client_trains_is_refused():
    config = changed(drop_remainder=True, batch_size=500)
    with pytest.raises(UserError, match="No client would train.*config.batch_size is 500"):
        experiment.build(config)
    config.batch_size = 60
    dataset = experiment.build_dataset(config)
    idle = experiment.clients_without_a_step(config, dataset)
    assert 0 < len(idle) < 20 and all(dataset.train.sizes[idle] < 60)


def test_a_batch_is_no_larger_than_the_largest_client():
    config = changed(batch_size=10**9)
    dataset = experiment.build_dataset(config)
    task, largest = made_task(config, dataset), int(dataset.train.sizes.max())
    assert experiment.build_local_training(config, task, largest).batch_size == largest


def test_a_method_can_have_its_own_learning_rate():
    config = changed(**{"client_optimizer.learning_rate": 0.1, "learning_rates.ditto": 0.5})
    task = made_task(config, experiment.build_dataset(config))
    for name, rate in (("fedavg", 0.1), ("ditto", 0.5)):
        config.algorithm = name
        training = experiment.build_local_training(config, task)
        update, _ = training.optimizer.update(1.0, training.optimizer.init(1.0))
        np.testing.assert_allclose(update, -rate)
        assert training.learning_rate == rate


def changed(**changes):
    config = config_lib.default_config()
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("algorithm", "fedavgg", "Unknown algorithm 'fedavgg'.* Did you mean 'fedavg'?"),
        ("algorithms", ("ditto", "feprox"), "'feprox'.* Did you mean 'fedprox'?"),
        ("algorithms", (), "algorithms is empty"),
        (
            "rounds",
            10**20,
            "config.rounds is 1(0){20}; it must be a whole",
        ),
        ("planned_rounds", 3, "config.planned_rounds is 3, less than config.rounds"),
        ("seeds", (0, 1, 0), "config.seeds contains 0 twice"),
        ("algorithms", ("local", "local"), "config.algorithms contains 'local' twice"),
        ("seeds_vary", "partition", "'everything'|everything, training"),
        ("cohort.join", "now", "current, initial"),
        ("cohort.dropout", float("nan"), "must be in"),
        ("rounds", 0, "config.rounds is 0; it must be a whole number from 1"),
        ("eval_every", 0, "config.eval_every is 0"),
        ("checkpoint_every", -1, "config.checkpoint_every is -1; it must be a whole number from 0"),
        ("batch_size", 0, "config.batch_size is 0"),
        ("local_epochs", 0, "config.local_epochs is 0"),
        ("local_steps", -1, "config.local_steps is -1; it must be a whole number from 0"),
        ("seed", -1, "-1 is not a valid seed"),
        ("seed", 2**32, "is not a valid seed"),
        ("seeds", (), "seeds is empty"),
        ("seeds", (0, "one"), "'one' is not a valid seed"),
        ("engine.devices", -1, "config.engine.devices is -1; it must be a whole number from 0"),
        ("engine.rounds_per_call", 0, "config.engine.rounds_per_call is 0"),
        ("engine.eval_batch_size", 0, "config.engine.eval_batch_size is 0"),
        ("engine.residence", "hots", "residence 'hots'.* Did you mean 'host'?"),
        ("engine.eval_clients", -1, "config.engine.eval_clients is -1"),
        ("engine.clients_per_chunk", "all", "must be 'default', 'auto' or a positive number"),
        ("engine.clients_per_chunk", "0", "must be 'default', 'auto' or a positive number"),
        ("cohort.dropout", 1.0, re.escape("config.cohort.dropout is 1.0; it must be in [0, 1)")),
        ("cohort.dropout", float("nan"), "config.cohort.dropout is nan"),
        ("data.alhpa", 1.0, "Unknown config key config.data.alhpa. Did you mean 'alpha'?"),
    ],
)
def test_invalid_values_are_refused(key, value, message):
    with pytest.raises(UserError, match=message):
        config_checks.check(changed(**{key: value}))


def test_a_missing_key():
    config = config_lib.default_config()
    del config.engine.devices
    with pytest.raises(UserError, match="config.engine.devices is missing"):
        config_checks.check(config)


def test_a_value_in_place_of_keys():
    config = config_lib.default_config()
    del config.cohort
    config.cohort = 5
    with pytest.raises(UserError, match="config.cohort is 5; it must have keys"):
        config_checks.check(config)


@pytest.mark.parametrize("chunk", ["default", "auto", "1", "12"])
def test_valid_chunks(chunk):
    config_checks.check(changed(**{"engine.clients_per_chunk": chunk}))


# optimizers


def optimizer(name="sgd", learning_rate=0.1, **arguments):
    config = config_lib.optimizer_config(name, learning_rate)
    config.update(arguments)
    optimizers.check(config, "client_optimizer")
    return optimizers.make(config)


@pytest.mark.filterwarnings("ignore")  # optax warns of some of its own
@pytest.mark.parametrize("name", optimizers.known_optimizers())
def test_an_optimizer_is_built_or_refused(name):
    try:
        built = optimizer(name)
    except UserError as refusal:
        assert name == "lbfgs" and "config.client_optimizer" in str(refusal)
    else:
        assert isinstance(built, optax.GradientTransformation)


def test_arguments_reach_optax():
    momentum = optimizer(momentum=0.5)
    state = momentum.init({"w": 0.0})
    update, state = momentum.update({"w": 1.0}, state)
    update, _ = momentum.update({"w": 1.0}, state)
    assert update["w"] == pytest.approx(-0.1 * 1.5)


def test_gradients_are_clipped_before_the_optimizer():
    clipped = optimizer(clip_norm=2.0, momentum=0.5)
    gradients = {"w": np.float32([3.0, 0.0]), "b": np.float32(4.0)}  # of norm 5
    update, state = clipped.update(gradients, clipped.init(gradients))
    np.testing.assert_allclose(update["w"], [-0.1 * 3 * 2 / 5, 0], rtol=1e-6)
    np.testing.assert_allclose(update["b"], -0.1 * 4 * 2 / 5, rtol=1e-6)
    small = {"w": np.float32([0.3, 0.0]), "b": np.float32(0.4)}
    update, _ = clipped.update(small, state)
    np.testing.assert_allclose(update["b"], -0.1 * (0.4 + 0.5 * 4 * 2 / 5), rtol=1e-6)


def test_without_a_norm_the_optimizer_has_the_state_of_before():
    """Earlier checkpoints have the state of the plain optimizer."""
    config = changed(**{"server_optimizer.momentum": 0.9}).server_optimizer
    made = optimizers.make(config).init({"w": 0.0})
    plain = optax.sgd(1.0, momentum=0.9).init({"w": 0.0})
    assert jax.tree.structure(made) == jax.tree.structure(plain)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(clip_norm=0.0), "config.client_optimizer.clip_norm is 0.0; it must be a positive"),
        (dict(clip_norm=float("nan")), "clip_norm is nan"),
        (dict(name="sdg"), "config.client_optimizer.name is 'sdg'.*Did you mean 'sgd'?"),
        (dict(name="chain"), "not an optax optimizer"),
        (dict(name="_deprecated_dpsgd"), "not an optax optimizer"),
        (dict(name="adam", momentum=0.9), "momentum is set, but optax.adam takes no 'momentum'"),
        (dict(learning_rate=-0.1), "config.client_optimizer.learning_rate is -0.1"),
        (dict(learning_rate=0.0), "must be a positive finite number"),
        (dict(learning_rate=float("inf")), "must be a positive finite number"),
        (dict(momentum=float("nan")), "momentum is nan"),
    ],
)
def test_invalid_optimizers_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        optimizer(**arguments)


# what an experiment checks when it is built


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.name": "resnet"}, "Unknown model 'resnet'"),
        ({"model.depth": 3}, "Unknown argument of the model mlp 'depth'; known are widths"),
        ({"cohort.size": 9}, "config.cohort.size is 9, but 8 clients take part"),
        ({"cohort.size": -1}, "config.cohort.size is -1"),
        ({"cohort.sampling": "poison"}, "Did you mean 'poisson'?"),
        ({"client_optimizer.decay": 1.5}, "config.client_optimizer.decay is 1.5"),
        ({"client_optimizer.decay": 0.0}, "config.client_optimizer.decay is 0.0"),
        ({"server_optimizer.clip_norm": -1.0}, "config.server_optimizer.clip_norm is -1.0"),
        ({"learning_rates.ditto": 0.0}, "config.learning_rates.ditto is 0.0"),
        ({"server_optimizer.name": "sgdd"}, "config.server_optimizer.name is 'sgdd'"),
        ({"engine.devices": 5}, "config.engine.devices is 5, but there are 4 cpu devices"),
        ({"algorithm": "fedrep", "model.name": "logistic"}, "FedRep needs a body"),
    ],
)
def test_an_invalid_experiment_is_refused(changes, message):
    data = {"data.num_clients": 10, "data.partition": "iid", "data.unseen_fraction": 0.2}
    config = changed(**data)
    for key, value in changes.items():
        *path, name = key.split(".")
        node = config
        for part in path:
            node = node[part]
        node[name] = value
    counter = runtime.CompilationCounter()
    with pytest.raises(UserError, match=message):
        experiment.build(config)
    counter.close()
    assert counter.programs == 0


def test_further_arguments_reach_the_model():
    config = config_lib.default_config()
    config.model.widths = (7, 3)
    built = experiment.build(config)
    shapes = jax.eval_shape(built.task.init, jax.random.key(0))
    kernels = {leaf.shape for leaf in jax.tree.leaves(shapes) if leaf.ndim == 2}
    assert kernels == {(64, 7), (7, 3), (3, 10)}
