"""pFedFDA: classifiers from the distributions of features, interpolated by cross-validation."""

import functools

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import plain
import plain_loops
import plain_rounds
import quadratics
from plain_loops import BODY, ROUNDS, Round, World, rate_of, vector
from quadratics import ENDS, ETA, LABELED, LABELS, PLAN, POINTS, SHARE, SIZES, STEPS

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.core import streams
from pfljax.ops.gaussians import Gaussians

RIDGE, LEAST = 0.2, 2
RULE = {"ridge": RIDGE, "least_examples": LEAST}
CAPACITY = 20  # more examples than a client of these tests has; one shape for all


def log_priors(y, classes):
    return np.log(np.bincount(y, minlength=classes) / len(y) + 1e-4)


def head(means, covariance, priors):
    """Kernel and bias of the classifier, with the inverse of the covariance."""
    size = len(covariance)
    shrunk = (1 - 1e-4) * covariance + 1e-4 * jnp.trace(covariance) / size * jnp.eye(size)
    kernel = jnp.linalg.inv(shrunk) @ means.T
    return kernel, priors - 0.5 * jnp.sum(means.T * kernel, axis=0)


def estimate(z, y, known):
    means = np.array(known[0])
    for c in range(len(means)):
        if np.sum(y == c) >= LEAST:
            means[c] = z[y == c].mean(axis=0)
    gaps = z - means[y]
    return means, gaps.T @ gaps / max(len(y) - 1, 1) + RIDGE * np.eye(z.shape[1])


def mix(beta, own, common):
    return tuple(b * a + (1 - b) * c for b, a, c in zip(beta, own, common, strict=True))


@jax.jit
def cross_validation(beta, z, y, turn, estimates, common, priors):
    """Each half is classified with the distributions of the other; `turn` is -1 for padding."""
    total = 0.0
    for half, own in ((0, estimates[1]), (1, estimates[0])):
        kernel, bias = head(*mix(beta, own, common), priors)
        losses = -jax.nn.log_softmax(z @ kernel + bias)[jnp.arange(len(y)), y]
        total += jnp.sum(losses * (turn == half)) / jnp.maximum(jnp.sum(turn == half), 1)
    return total


slope, curvature = (jax.jit(of(cross_validation)) for of in (jax.grad, jax.hessian))


def adapt(z, y, common, priors):
    """The client's distributions, mixed with the common ones."""
    turn = np.full(CAPACITY, -1)
    for c in range(len(priors)):
        rows = np.flatnonzero(y == c)
        if len(rows) > 1:
            turn[rows] = np.arange(len(rows)) % 2
    halves = [turn[: len(y)] == half for half in (0, 1)]
    arguments = (
        np.pad(z, ((0, CAPACITY - len(y)), (0, 0))),
        np.pad(y, (0, CAPACITY - len(y))),
        turn,
        [estimate(z[half], y[half], common) for half in halves],
        common,
        priors,
    )
    beta = np.full(2, 0.5 if np.any(halves) else 0.0)
    for _ in range(10 if np.any(halves) else 0):
        value = float(cross_validation(beta, *arguments))
        g, matrix = np.asarray(slope(beta, *arguments)), np.asarray(curvature(beta, *arguments))
        free = ~(((beta <= 0) & (g > 0)) | ((beta >= 1) & (g < 0)))
        scales, axes = np.linalg.eigh(np.where(np.outer(free, free), matrix, 0))
        step = np.where(free, axes @ (axes.T @ np.where(free, g, 0) / (abs(scales) + 0.3)), 0)
        step = step / max(np.max(np.abs(step)), 1)
        for fraction in (*(0.5**k for k in range(6)), 0.0):
            candidate = np.clip(beta - fraction * step, 0, 1)
            if cross_validation(candidate, *arguments) <= value + 1e-5 * max(abs(value), 1):
                break
        beta = candidate
    return mix(beta, estimate(z, y, common), common)


def mean_of(weights, found):
    weights = np.asarray(weights) / np.sum(weights)
    return tuple(np.tensordot(weights, np.stack(part), 1) for part in zip(*found, strict=True))


def test_closed_form():
    task = quadratics.linear_classifier()
    local = core.LocalTraining(quadratics.LOCAL.optimizer, batch_size=8, epochs=STEPS)
    algorithm = ALGORITHMS["pfedfda"](task, local, **RULE)
    key = streams.key_of(jax.random.key(0), streams.SERVER_INIT)
    first = algorithm.init_server(None, key)
    outcome = federation.run(
        algorithm,
        data=LABELED,
        plan=PLAN,
        rounds=3,
        score=task,
        devices=2,
    )
    with jax.enable_x64(True):
        common = tuple(np.asarray(leaf, np.float64) for leaf in first.gaussians)
        body = np.asarray(first.average.params["body"]["w"], np.float64)
        own = [(POINTS[e - n : e], LABELS[e - n : e]) for e, n in zip(ENDS, SIZES, strict=True)]
        for _ in range(3):
            bodies, found = [], []
            for x, y in own:
                priors, w = log_priors(y, 4), body
                kernel, bias = (np.asarray(part) for part in head(*common, priors))
                for _ in range(STEPS):
                    gap = quadratics.softmax(x @ w @ kernel + bias) - np.eye(4)[y]
                    w = w - ETA * x.T @ gap @ kernel.T / len(y)
                bodies.append(w)
                found.append(adapt(x @ w, y, common, priors))
            body, common = np.tensordot(SHARE, bodies, 1), mean_of(SIZES, found)
    for ours, theirs in (
        (outcome.server.average.params["body"]["w"], body),
        (outcome.server.gaussians.means, common[0]),
        (outcome.server.gaussians.covariance, common[1]),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def test_without_own_means_only_covariances_are_those_of_clients():
    # Numbers with a point are arguments of one program.
    none, some = (
        identities.run("pfedfda", rounds=1, least_examples=least).server.gaussians
        for least in (100.0, 2.0)
    )
    start = federation.make("pfedfda").init_server(
        None, streams.key_of(jax.random.key(0), streams.SERVER_INIT)
    )
    federation.assert_close(none.means, start.gaussians.means)
    assert federation.differ(some.means, start.gaussians.means)
    assert federation.differ(none.covariance, start.gaussians.covariance)


def entropy(model, x, y, kernel, bias):
    return jnp.mean(plain.entropies(plain.features(model, x, True) @ kernel + bias, y))


def test_batch_norm():
    def adapted(model, common, x, y):
        priors = log_priors(y, federation.NUM_CLASSES)
        return adapt(np.asarray(plain.features(model, x, False)), y, common, priors), priors

    def one_round(server, clients, ids, found):
        bodies, own = [], []
        for k in ids:
            x, y = plain.examples(k)
            layer = head(*server.gaussians, log_priors(y, federation.NUM_CLASSES))
            start = {**server.average.params, **server.initial_head}
            trained = plain.train(start, x, y, entropy, *layer, part="body")
            bodies.append({"body": trained["body"]})
            own.append(adapted(trained, server.gaussians, x, y)[0])
        return server._replace(
            average=batch_norm.fed_average(server.average, bodies, ids),
            gaussians=Gaussians(*mean_of(plain.sizes(ids), own)),
        )

    def personal(server, client, x, y):
        model = {**server.average.params, **server.initial_head}
        kernel, bias = head(*adapted(model, server.gaussians, x, y)[0], log_priors(y, 3))
        return {"model": model, "head": {"kernel": kernel, "bias": bias}}

    batch_norm.check("pfedfda", one_round, personal=personal, **RULE)


def test_plain_loop():
    @jax.jit
    @jax.grad
    def slope_of(w, x, y, kernel, bias):
        outputs = plain_loops.features(w, x) @ kernel + bias
        return -jnp.mean(jax.nn.log_softmax(outputs)[jnp.arange(len(y)), y])

    def adapted(world, k, w, common):
        z = np.asarray(plain_loops.features(w, world.x[k]))
        return adapt(z, world.y[k], common, log_priors(world.y[k], plain_loops.CLASSES))

    def loop(world: World):
        w, common = world.params, tuple(np.asarray(part) for part in world.server.gaussians)
        for r, cohort in enumerate(world.cohorts):
            models, found = {}, []
            for k in cohort:
                layer = head(*common, log_priors(world.y[k], plain_loops.CLASSES))
                gradient = functools.partial(slope_of, kernel=layer[0], bias=layer[1])
                models[k] = world.train(k, w, rate_of(r), part=BODY, gradient=gradient)
                found.append(adapted(world, k, models[k], common))
            w = plain_loops.mean(models)
            common = mean_of([plain_loops.SIZES[k] for k in cohort], found)
            deployed = {}
            for k in range(4) if r == ROUNDS - 1 else ():
                priors = log_priors(world.y[k], plain_loops.CLASSES)
                kernel, bias = head(*adapted(world, k, w, common), priors)
                deployed[k] = vector(bias, kernel, w)
            yield Round(vector(w, *common), {}, deployed)

    plain_rounds.check("pfedfda", loop, RULE)
