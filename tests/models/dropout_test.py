"""Dropout drops in training and in no evaluation, with keys that no other draw uses."""

import functools
import re

import federation
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pfljax import core, models, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.core import Batch
from pfljax.errors import UserError
from pfljax.models import adapters
from pfljax.models.layers import Dense
from pfljax.models.model import from_flax


class Body(nn.Module):
    """A layer, and dropout behind it."""

    rate: float
    width: int = 4

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(self.rate)(nn.tanh(Dense(self.width)(x)))


class Head(nn.Module):
    """Dropout, and a layer behind it."""

    rate: float
    outputs: int

    @nn.compact
    def __call__(self, x):
        return Dense(self.outputs)(nn.Dropout(self.rate)(x))


@functools.cache
def network(body_rate, head_rate=0.0):
    body, head = Body(body_rate), Head(head_rate, federation.NUM_CLASSES)
    return from_flax(body, head, (federation.NUM_FEATURES,))


@functools.cache
def task(body_rate, head_rate=0.0):
    return tasks.classification(network(body_rate, head_rate), num_classes=federation.NUM_CLASSES)


def batch():
    inputs = jnp.asarray(federation.examples().inputs[:6])
    return Batch(inputs, jnp.arange(6) % federation.NUM_CLASSES, jnp.arange(6) < 5)


def test_features_are_dropped_with_a_key_and_scaled_up():
    params, key = network(0.5).init(jax.random.key(0)), jax.random.key(1)
    rows = jnp.tile(batch().inputs[:1], (4000, 1))
    plain = network(0.0).features(params, rows)
    np.testing.assert_array_equal(network(0.5).features(params, rows), plain)
    dropped = network(0.5).features(params, rows, None, key)
    zero = dropped == 0
    np.testing.assert_allclose(zero.mean(axis=0), 0.5, atol=0.05)
    np.testing.assert_allclose(dropped, np.where(zero, 0, 2 * plain), rtol=1e-6)
    other = network(0.5).features(params, rows, None, jax.random.key(2))
    assert 0.4 < np.mean(zero != (other == 0)) < 0.6


def test_body_and_head_drop_other_entries():
    """An entry survives both in a quarter of the cases."""

    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.5)(x) * self.param("scale", nn.initializers.ones, ())

    both = from_flax(Scaled(), Scaled(), (1000,))
    ones, key = jnp.ones((1, 1000)), jax.random.key(0)
    params = both.init(key)
    features = both.features(params, ones, None, key)
    outputs = both.head(params, features, None, key)
    np.testing.assert_allclose(np.mean(features > 0), 0.5, atol=0.06)
    np.testing.assert_allclose(np.mean(outputs > 0), 0.25, atol=0.05)


def test_losses_drop_in_training_only():
    params, key = task(0.5).init(jax.random.key(0)), jax.random.key(1)
    plain = task(0.0).losses(params, batch(), key)
    assert not np.allclose(task(0.5).losses(params, batch(), key), plain)
    np.testing.assert_array_equal(task(0.5).losses(params, batch(), key, train=False), plain)
    for name, value in task(0.5).evaluate(params, batch(), key).items():
        np.testing.assert_array_equal(value, task(0.0).evaluate(params, batch(), key)[name])


# FedBN needs batch normalization, FedPerfix a Transformer with adapters, pFedPG and FedPGP prompts,
# and the last two train no network.
OTHER_MODELS = ("fedbn", "fedperfix", "pfedpg", "fedpgp", "em_gmm", "fedgbdt")


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in OTHER_MODELS])
def test_every_method_trains_with_dropout(name):
    """Dropout is in the program of its update."""
    held = federation.held_by_the_server(name)
    has_head = name not in ("pfedfda", "fedpcl")  # which classify without it
    data = jax.tree.map(jnp.asarray, federation.examples())

    def program(task):
        local = core.LocalTraining(optax.sgd(0.1), batch_size=4, learning_rate=0.1)
        algorithm = ALGORITHMS[name](task, local, **held)

        def update(key):
            client_id = jnp.int32(2)
            context = core.Context(key, jnp.int32(3), jnp.int32(9), client_id, key)
            server = algorithm.init_server(data.population(), key)
            client = algorithm.init_client(server, data.profile(client_id), key)
            return algorithm.update_client(server, client, data.of_client(client_id), context)

        traced = jax.make_jaxpr(lambda key: update(key)[:3])(jax.random.key(0))
        return re.sub(r" at 0x\w+", "", str(traced))

    without = program(task(0.0))
    assert program(task(0.0, 0.0)) == without
    assert program(task(0.5)) != without
    assert (program(task(0.0, 0.5)) != without) == has_head


@pytest.mark.parametrize("name", ["fedcp", "fedkd"])
def test_objectives_that_take_outputs_themselves_drop_in_them(name):
    """Without FedAvg's loss in it; the same step with other keys."""
    data = jax.tree.map(jnp.asarray, federation.examples())

    @functools.partial(jax.jit, static_argnums=0)
    def loss(rate, key):
        hyperparameters = {"distillation": 1.0} if name == "fedkd" else {}
        algorithm = ALGORITHMS[name](
            task(rate),
            core.LocalTraining(optax.sgd(0.0), batch_size=20, shuffle=False),
            **hyperparameters,
        )
        client_id, run = jnp.int32(2), jax.random.key(0)
        context = core.Context(key, jnp.int32(3), jnp.int32(9), client_id, run)
        server = algorithm.init_server(data.population(), run)
        client = algorithm.init_client(server, data.profile(client_id), run)
        output = algorithm.update_client(server, client, data.of_client(client_id), context)
        return output.metrics["loss"].value

    gaps = {
        rate: abs(loss(rate, jax.random.key(1)) - loss(rate, jax.random.key(2)))
        for rate in (0.0, 0.9)
    }
    assert gaps[0.9] > 10 * gaps[0.0] + 1e-3


@pytest.mark.parametrize("block_size", [2, 6])
def test_language_models_drop_in_blocks_too(block_size):
    length, vocabulary = 3, 7

    class Embedded(nn.Module):
        @nn.compact
        def __call__(self, ids):
            return nn.Dropout(0.5)(nn.Embed(vocabulary, 4)(ids))

    model = from_flax(Embedded(), Head(0.5, vocabulary), (length,), reads_ids=True)
    lm = tasks.next_token(model, num_classes=vocabulary, block_size=block_size)
    ids = jnp.arange(18).reshape(6, length) % vocabulary
    texts = Batch(ids, ids, jnp.ones(6, bool))
    params = lm.init(jax.random.key(0))
    one, other = (lm.losses(params, texts, jax.random.key(seed)) for seed in (0, 1))
    assert not np.any(np.isclose(one, other))
    still = [lm.losses(params, texts, jax.random.key(seed), train=False) for seed in (0, 1)]
    np.testing.assert_array_equal(*still)


def test_adapters_and_short_types_pass_the_key_on():
    model, key = network(0.5), jax.random.key(1)
    lora = adapters.attach(model, adapters.lora(rank=1))
    for wrapped in (models.compute_in(model, "bfloat16"), lora):
        params = wrapped.init(jax.random.key(2))
        dropped = wrapped.features(params, batch().inputs, None, key)
        assert np.any(np.asarray(dropped) == 0)
        assert not np.any(np.asarray(wrapped.features(params, batch().inputs)) == 0)


def test_a_network_without_dropout_compiles_to_the_same_program():
    plain = from_flax(nn.Dense(4), nn.Dense(3), (5,))
    params = plain.init(jax.random.key(0))
    rows = jnp.ones((2, 5))
    programs = {
        str(
            jax.make_jaxpr(lambda params, rows, k=key: plain.features(params, rows, None, k))(
                params, rows
            )
        )
        for key in (None, jax.random.key(0))
    }
    assert len(programs) == 1


@pytest.mark.parametrize(
    "last, message",
    [
        (lambda x: nn.Dropout(0.5, deterministic=False)(x), "sets `deterministic` of Dropout"),
        (lambda x: nn.Dropout(0.5)(x, deterministic=True), "sets `deterministic` of Dropout"),
        (lambda x: nn.Dropout(0.5)(x, False), "sets `deterministic` of Dropout"),
        (
            lambda x: nn.MultiHeadDotProductAttention(2, dropout_rate=0.1, deterministic=True)(
                x[:, None]
            )[:, 0],
            "sets `deterministic` of MultiHead",
        ),
        (lambda x: nn.Dropout(0.5)(models.layers.BatchNorm()(x)), "dropout and batch norm"),
    ],
)
def test_dropout_that_cannot_be_used(last, message):
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            return last(Dense(4)(x))

    with pytest.raises(UserError, match=message):
        from_flax(Own(), Dense(3), (5,))
