"""PeFLL: descriptors of data, models made of them, and the gradient of both networks."""

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_loops
import plain_rounds
import pytest
import quadratics
from plain_loops import CLASSES, FEATURES, Round, World, loss, rate_of
from quadratics import ENDS, MEANS, POINTS, SIZES, near, steps_towards, vector

from pfljax import core, models, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.core import streams
from pfljax.engine.accounting import traffic
from pfljax.errors import UserError
from pfljax.ops import hypernetwork

SETTINGS = {"embedding_size": 3, "embedding_hidden": 5}


class Adam:
    """Adam with clipping by the norm of all arrays, on a list of arrays."""

    def __init__(self, rate, clip):
        self.rate, self.clip, self.steps, self.moments, self.norms = rate, clip, 0, None, []

    def step(self, arrays, slopes):
        self.norms.append(np.sqrt(sum(np.sum(np.square(g)) for g in slopes)))
        slopes = [g * min(1, self.clip / self.norms[-1]) for g in slopes]
        self.moments = self.moments or [(0.0, 0.0) for _ in slopes]
        self.steps += 1
        self.moments = [
            (0.9 * m + 0.1 * g, 0.999 * v + 0.001 * np.square(g))
            for (m, v), g in zip(self.moments, slopes, strict=True)
        ]
        factors = 1 - 0.9**self.steps, 1 - 0.999**self.steps
        return [
            x - self.rate * m / factors[0] / (np.sqrt(v / factors[1]) + 1e-8)
            for x, (m, v) in zip(arrays, self.moments, strict=True)
        ]


def test_closed_form():
    # Without hidden layers in h a model is `bias + v @ kernel`; all gradients by hand.
    rate, clip, size = 0.05, 6.0, 3
    settings = {**SETTINGS, "rate": rate, "clip": clip, "layers": 0, "linear_layer": False}
    task = quadratics.quadratic()._replace(num_features=4)
    algorithm = ALGORITHMS["pefll"](task, quadratics.LOCAL, spread=0.5, **settings)
    algorithm = algorithm._replace(init_server=with_random_models(algorithm.init_server))
    key = streams.key_of(jax.random.key(0), streams.SERVER_INIT)
    start = algorithm.init_server(quadratics.DATA.population(), key)
    parts, heads = start.embedding, start.network["heads"]
    layers = [parts[name][kind] for name in ("hidden", "out") for kind in ("kernel", "bias")]
    arrays = [*layers, vector(heads["kernel"]), vector(heads["bias"])]
    arrays = [np.asarray(array, np.float64) for array in arrays]
    # The only class is part of the input.
    x = [np.c_[POINTS[e - n : e], np.ones(n)] for e, n in zip(ENDS, SIZES, strict=True)]
    adam = Adam(rate, clip)

    def describe(rows, arrays):
        z = np.maximum(rows @ arrays[0] + arrays[1], 0)
        return z, (z @ arrays[2] + arrays[3]).mean(axis=0)

    for round in range(3):
        slopes = [np.zeros_like(array) for array in arrays]
        for k, rows in enumerate(x):
            z, u = describe(rows, arrays)
            if (round, k) == (0, 0):
                first = u.mean(), u.std(ddof=1)
            mean, std = first if round > 0 else (u.mean(), u.std(ddof=1))
            v = (u - mean) / std
            theta = arrays[5] + v @ arrays[4]
            change = steps_towards(theta, MEANS[k]) - theta
            of_u = -(arrays[4] @ change) / std / len(rows)  # for each example
            of_z = (z > 0) * (of_u @ arrays[2].T)
            terms = [
                *(rows.T @ of_z, of_z.sum(axis=0), z.sum(axis=0)[:, None] * of_u),
                *(len(rows) * of_u, -np.outer(v, change), -change),
            ]
            slopes = [total + term / 3 for total, term in zip(slopes, terms, strict=True)]
        arrays = adam.step(arrays, slopes)
    mean, std = first
    assert min(adam.norms) < clip < max(adam.norms), adam.norms
    outcome = federation.run(
        algorithm, data=quadratics.DATA, plan=quadratics.PLAN, rounds=3, score=task, devices=2
    )
    found = outcome.server
    parts, heads = found.embedding, found.network["heads"]
    layers = [parts[name][kind] for name in ("hidden", "out") for kind in ("kernel", "bias")]
    of_heads = vector(heads["kernel"]), vector(heads["bias"])
    for ours, wanted in zip([*layers, *of_heads], arrays, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=2e-4, atol=2e-5)
    near(found.scale[:2], [mean, std])
    thetas = [arrays[5] + (describe(rows, arrays)[1] - mean) / std @ arrays[4] for rows in x]
    gaps = quadratics.personal_gaps(np.stack(thetas))
    np.testing.assert_allclose(
        outcome.scores["personal"]["test"]["loss"], gaps, rtol=1e-3, atol=1e-3
    )
    assert size == len(arrays[3])


def with_random_models(init_server):
    """Gives the heads kernels that are not zero, as the quadratic task starts at zero."""

    def init(population, key):
        server = init_server(population, key)
        heads = server.network["heads"]
        draw = jax.random.normal(jax.random.key(5), (3, 4))
        kernel = {"body": {"w": draw[:, :2]}, "head": {"w": draw[:, 2:]}}
        return server._replace(network={**server.network, "heads": {**heads, "kernel": kernel}})

    return init


def test_plain_loop():
    """The gradient of both networks by automatic differentiation, end to end."""
    rate, size, hidden = 0.03, 3, 5
    joined = FEATURES + CLASSES

    def describe(parts, x, y):
        body, kernel, bias, out, out_bias = parts
        z = jnp.tanh(x @ body["kernel"] + body["bias"])
        z = jnp.concatenate([z, jnp.eye(CLASSES)[y]], axis=1)
        return jnp.mean(jax.nn.relu(z @ kernel + bias) @ out + out_bias, axis=0)

    def generate(network, v):
        features = jax.nn.relu(v @ network["hidden"][0]["kernel"] + network["hidden"][0]["bias"])
        features = features @ network["linear"]["kernel"] + network["linear"]["bias"]
        heads = network["heads"]
        leaves = zip(jax.tree.leaves(heads["kernel"]), jax.tree.leaves(heads["bias"]), strict=True)
        return jnp.concatenate(
            [(features @ k.reshape(len(features), -1) + b.ravel()) for k, b in leaves]
        )

    def agreement(both, x, y, mean, std, change):
        return -generate(both[1], (describe(both[0], x, y) - mean) / std) @ change

    slope = jax.jit(jax.grad(agreement))
    step = jax.jit(jax.grad(loss))

    def loop(world: World):
        layers = world.server.embedding
        parts = (layers["body"]["body"], *(layers[n][k] for n in ("hidden", "out") for k in KINDS))
        assert [part.shape for part in parts[1:]] == [
            *((joined, hidden), (hidden,), (hidden, size), (size,))
        ]
        both, scale = (parts, world.server.network), None
        leaves, structure = jax.tree.flatten(both)
        adam = Adam(rate, 1e9)

        def scale_for(both, x, y):
            u = np.asarray(describe(both[0], x, y))
            return scale or (u.mean(), u.std(ddof=1))

        def model_of(both, x, y):
            mean, std = scale_for(both, x, y)
            return np.asarray(generate(both[1], (describe(both[0], x, y) - mean) / std))

        for r, cohort in enumerate(world.cohorts):
            slopes = []
            for k in cohort:
                x, y = next(world.batches(k))
                start = model_of(both, x, y)
                change = world.train(k, start, rate_of(r), gradient=step) - start
                slopes.append(slope(both, x, y, *scale_for(both, x, y), change))
                if r == 0 and k == min(cohort):
                    first = scale_for(both, x, y)
            average = jax.tree.map(lambda *rows: np.mean(rows, axis=0), *slopes)
            leaves = adam.step(jax.tree.leaves(both), jax.tree.leaves(average))
            both = jax.tree.unflatten(structure, leaves)
            scale = first
            deployed = {k: model_of(both, world.x[k], world.y[k]) for k in range(4)}
            (body, *layers), network = both
            state = plain_loops.vector(
                plain_loops.flat(body),
                *layers,
                plain_loops.flat(network),
                scale,
            )
            yield Round(state, {}, deployed)

    def view(server):
        layers = server.embedding
        own = [layers[name][kind] for name in ("hidden", "out") for kind in KINDS]
        return [layers["body"], *own, server.network, *server.scale[:2]]

    settings = {**SETTINGS, "rate": rate, "clip": 1e9, "hidden": 6, "layers": 1}
    plain_rounds.check("pefll", loop, settings, view)


KINDS = ("kernel", "bias")


def test_without_local_steps_nothing_moves_and_otherwise_both_networks_do():
    def update(factor):
        """One client's round at the client and at the server."""
        local = federation.local_training(schedule=lambda round: factor)
        settings = {**SETTINGS, "rate": 0.1, "hidden": 6, "layers": 1}
        algorithm = ALGORITHMS["pefll"](federation.task(), local, **settings)
        examples, key = jax.tree.map(jnp.asarray, federation.examples()), jax.random.key(0)
        start = algorithm.init_server(examples.population(), key)
        context = core.Context(key, jnp.int32(0), jnp.int32(1), jnp.int32(4))

        @jax.jit
        def one_round(start):
            output = algorithm.update_client(start, (), examples.of_client(jnp.int32(4)), context)
            each = jax.tree.map(lambda leaf: leaf[None], output.each)
            cohort = core.Cohort(jnp.array([4]), jnp.array([16]), 8)
            uploads = core.Uploads(output.sum, each)
            return algorithm.server_update(start, uploads, cohort, context)

        return start, one_round(start)

    start, ended = update(0.0)
    federation.assert_close(ended.embedding, start.embedding)
    federation.assert_close(ended.network, start.network)
    start, moved = update(1.0)
    assert federation.differ(moved.embedding, start.embedding)
    assert federation.differ(moved.network, start.network)


def test_the_hypernetwork_stays_at_the_server():
    task = federation.task()
    algorithm = ALGORITHMS["pefll"](task, federation.local_training(), **SETTINGS)
    examples, key = jax.tree.map(jnp.asarray, federation.examples()), jax.random.key(0)
    server = algorithm.init_server(examples.population(), key)
    counted = traffic.count(algorithm, server, (), examples)
    model, descriptor = core.tree.num_bytes(task.init(key)), 3 * 4
    embedding = core.tree.num_bytes(server.embedding)
    assert counted == traffic.Traffic(
        embedding + 4 + model + descriptor, embedding + model + descriptor, model + descriptor
    )
    assert core.tree.num_bytes(server.network) > 50 * model


def test_a_network_for_the_embedding_alone():
    other = federation.task("mlp")._replace(init=lambda key: {"body": {}, "head": {}})
    other = other._replace(
        features=lambda params, inputs, mask=None, key=None: inputs, num_features=5
    )
    with pytest.raises(UserError, match="^PeFLL needs a body"):
        federation.make("pefll", embedding=other)
    with pytest.raises(UserError, match="^PeFLL needs a model without running statistics"):
        federation.make("pefll", embedding=federation.task("mlp_bn"))
    wide = tasks.classification(models.mlp((5,), 3, widths=(9,)), num_classes=3)
    server = federation.make("pefll", embedding=wide).init_server(
        federation.examples().population(), jax.random.key(0)
    )
    assert server.embedding["hidden"]["kernel"].shape == (9 + 3, 10)
    assert set(server.embedding["body"]) == {"body"}
    made = hypernetwork.generate(server.network, jnp.zeros(1 + 8 // 4))
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(
        jnp.shape, federation.task().init(jax.random.key(0))
    )
    assert optax.tree.norm(made) > 0
    without_body = tasks.classification(models.logistic((5,), 3), num_classes=3)
    with pytest.raises(UserError, match="^PeFLL needs a body"):
        ALGORITHMS["pefll"](without_body, federation.local_training())
    linear = ALGORITHMS["pefll"](without_body, federation.local_training(), embedding=wide)
    server = linear.init_server(federation.examples().population(), jax.random.key(0))
    made = hypernetwork.generate(server.network, jnp.zeros(1 + 8 // 4))
    assert jax.tree.map(jnp.shape, made) == {"head": {"bias": (3,), "kernel": (5, 3)}}
