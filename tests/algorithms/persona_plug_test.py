"""Persona-Plug: personal vectors by attention to a client's history; FedAvg without a history."""

import functools

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import plain_loops
import plain_rounds
import pytest
import quadratics
from plain_loops import Round, rate_of
from quadratics import ENDS, ETA, LABELED, LABELS, POINTS, SHARE, SIZES, near, softmax
from scipy.special import erf

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.ops import plug as plug_ops

SCALE = 10.0  # the default


def test_closed_form():
    """In the first step, personal vectors are zero, and of the plug only the values move."""
    task = quadratics.linear_classifier()
    local = core.LocalTraining(optax.sgd(ETA), batch_size=8)
    outcome, average = (
        federation.run(
            ALGORITHMS[name](task, local),
            data=LABELED,
            plan=quadratics.PLAN,
            rounds=1,
            score=task,
            devices=2,
        )
        for name in ("persona_plug", "fedavg")
    )
    model, found = outcome.server.params["model"], outcome.server.params["plug"]
    federation.assert_close(model, average.server.params)
    start = jax.tree.map(np.asarray, task.init(jax.random.key(0)))
    kernel, bias = np.zeros_like(found["value"]["kernel"]), np.zeros(2)
    clients = [slice(end - size, end) for end, size in zip(ENDS, SIZES, strict=True)]
    for share, rows in zip(SHARE, clients, strict=True):
        z, labels = POINTS[rows] @ start["body"]["w"], np.eye(4)[LABELS[rows]]
        slope = (softmax(z @ start["head"]["kernel"]) - labels) @ start["head"]["kernel"].T
        known = z / np.linalg.norm(z, axis=1, keepdims=True)
        attention = softmax(np.where(np.eye(len(z)), -np.inf, SCALE * known @ known.T))
        kernel -= ETA * share * (attention @ hidden_of(found, known, labels)).T @ slope / len(z)
        bias -= ETA * share * slope.mean(axis=0)
    near(found["value"]["kernel"], kernel)
    near(found["value"]["bias"], bias)
    np.testing.assert_array_equal(found["query"]["kernel"], np.eye(2))
    sums = []
    for rows in clients:
        z, labels = POINTS[rows] @ model["body"]["w"], np.eye(4)[LABELS[rows]]
        known = z / np.linalg.norm(z, axis=1, keepdims=True)
        vectors = softmax(SCALE * known @ known.T) @ (hidden_of(found, known, labels) @ kernel)
        sums.append(((z + vectors + bias) @ model["head"]["kernel"]).sum())
    near(outcome.scores["personal"]["test"]["loss"], sums)
    assert federation.differ(kernel, 0.0)


def hidden_of(plug, known, labels):
    """The hidden layer of the values, in NumPy."""
    x = np.concatenate([known, labels], axis=1) @ plug["hidden"]["kernel"] + plug["hidden"]["bias"]
    return x * (1 + erf(x / np.sqrt(2))) / 2


def test_without_a_history_is_fedavg():
    average = identities.run("fedavg")
    empty, full = (identities.run("persona_plug", items=items) for items in (0, 512))
    federation.assert_close(empty.server.params["model"], average.server.params)
    federation.assert_close(empty.scores["personal"], average.scores["personal"], 1e-5)
    assert federation.differ(full.server.params["model"], average.server.params)
    losses = [run.scores["personal"]["test"]["loss"] for run in (full, average)]
    assert federation.differ(*losses, least=1e-2)


def test_private_heads_without_a_history_are_fedper():
    average = identities.run("fedper")
    empty, full = (
        identities.run("persona_plug", items=items, private_head=True) for items in (0, 512)
    )
    federation.assert_close(empty.clients["model"], average.clients)
    federation.assert_close(empty.scores["personal"], average.scores["personal"], 1e-5)
    assert federation.differ(full.clients["model"], average.clients)


def test_an_example_does_not_attend_to_itself():
    """A client with one example trains without a history, and another label changes nothing."""
    algorithm = ALGORITHMS["persona_plug"](federation.task(), federation.local_training())
    examples = jax.tree.map(jnp.asarray, federation.examples())
    server = algorithm.init_server(examples.population(), jax.random.key(0))
    moved = server.params["plug"] | {
        "value": jax.tree.map(lambda leaf: leaf + 0.5, server.params["plug"]["value"])
    }
    server = server._replace(params=server.params | {"plug": moved})
    context = core.Context(jax.random.key(2), jnp.int32(0), jnp.int32(1), jnp.int32(3))
    update = jax.jit(lambda k: algorithm.client_update(server, (), examples.of_client(k), context))
    assert federation.SIZES[3] == 1
    of_plug = update(jnp.int32(3)).sum.value["plug"]
    assert not any(leaf.any() for leaf in jax.tree.leaves(of_plug))
    of_plug = update(jnp.int32(2)).sum.value["plug"]
    assert all(leaf.any() for leaf in jax.tree.leaves(of_plug))


def test_attention():
    draw = np.random.default_rng(0)
    scores, allowed = draw.normal(size=(3, 4)), np.array([[1, 1, 0, 1], [0, 1, 0, 0], [0] * 4]) > 0
    found = plug_ops.attend(jnp.asarray(scores), jnp.asarray(allowed))
    powers = (np.exp(scores) * allowed)[:2]
    np.testing.assert_allclose(found[:2], powers / powers.sum(axis=1, keepdims=True), 1e-5)
    np.testing.assert_array_equal(found[2], 0)
    slope = jax.grad(lambda s: jnp.sum(plug_ops.attend(s, allowed)[:, 1]))(jnp.asarray(scores))
    assert np.isfinite(slope).all() and not slope[2].any()


@pytest.mark.parametrize("items", [4, 512])
def test_plain_loop(items):
    whole_loop = functools.partial(loop, items=items)
    plain_rounds.check("persona_plug", whole_loop, {"items": items, "width": 3})


def personal(plug, z, known, labels, allowed):
    """The personal vectors of features `z`, with exponentials of all scores."""

    def unit(x):
        return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-30)

    rows = unit(known)
    queries = unit(z) @ plug["query"]["kernel"] + plug["query"]["bias"]
    powers = jnp.exp(SCALE * queries @ rows.T) * allowed
    total = powers.sum(axis=1, keepdims=True)
    weights = powers / jnp.where(total == 0, 1, total)
    inputs = jnp.concatenate([rows, labels], axis=1)
    hidden = inputs @ plug["hidden"]["kernel"] + plug["hidden"]["bias"]
    hidden = hidden * jax.scipy.stats.norm.cdf(hidden)
    return weights @ (hidden @ plug["value"]["kernel"] + plug["value"]["bias"])


@jax.jit
@functools.partial(jax.grad, argnums=(0, 1))
def slopes(w, plug, x, y, known, labels, allowed):
    z = plain_loops.features(w, x)
    logits = plain_loops.head(w, z + personal(plug, z, known, labels, allowed))
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(y)), y])


def loop(world, items):
    w, plug = world.params, jax.tree.map(np.asarray, world.server.params["plug"])
    for r, cohort in enumerate(world.cohorts):
        trained, rate = {}, rate_of(r)
        for k in cohort:
            x, y = world.x[k], world.y[k]
            kept = np.arange(len(y))[-items:]
            known, labels = plain_loops.features(w, x[kept]), np.eye(plain_loops.CLASSES)[y[kept]]
            own, own_plug = w.copy(), plug
            for _ in range(plain_loops.EPOCHS):
                for start in range(0, len(y), plain_loops.BATCH):
                    rows = np.arange(len(y))[start : start + plain_loops.BATCH]
                    others = rows[:, None] != kept
                    slope = slopes(own, own_plug, x[rows], y[rows], known, labels, others)
                    own, own_plug = plain.axpy(-rate, slope, (own, own_plug))
            trained[k] = plain_loops.vector(own, plain_loops.flat(own_plug))
        whole = plain_loops.mean(trained)
        w, rest = whole[: len(w)], whole[len(w) :]
        plug = unflatten(plug, rest)
        yield Round(whole, {})


def unflatten(tree, vector):
    """A tree of the form of another with the numbers of a vector."""
    leaves, structure = jax.tree.flatten(tree)
    parts = np.split(vector, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return structure.unflatten(
        [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )


def test_batch_norm():
    """The model in training mode, its history in evaluation mode."""

    def loss(params, x, y, known, labels, allowed):
        z = plain.features(params["model"], x, True)
        vectors = personal(params["plug"], z, known, labels, allowed)
        return jnp.mean(plain.entropies(plain.head(params["model"], z + vectors), y))

    def train(params, x, y):
        known = plain.features(params["model"], x, False)
        labels = np.eye(federation.NUM_CLASSES)[y]
        for _ in range(plain.EPOCHS):
            for rows in np.split(np.arange(len(y)), range(plain.BATCH, len(y), plain.BATCH)):
                others = rows[:, None] != np.arange(len(y))
                slope = plain.gradient(loss)(params, x[rows], y[rows], known, labels, others)
                model = plain.step(params["model"], slope["model"], x[rows])
                moved = plain.axpy(-plain.RATE, slope["plug"], params["plug"])
                params = {"model": model, "plug": moved}
        return jax.tree.map(np.asarray, params)

    batch_norm.check("persona_plug", batch_norm.averaged(train), width=3)
