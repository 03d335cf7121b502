"""FedPCL: bodies contrasted with the prototypes of all clients."""

import batch_norm
import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import plain_loops
import plain_rounds
import pytest
import quadratics
from plain_loops import BODY, CLASSES, FEATURES, HEAD, Round, rate_of, vector
from quadratics import ENDS, ETA, PLAN, POINTS, SIZES, STEPS, near, softmax

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.ops.prototypes import Prototypes


def mean_prototypes(each):
    """The mean of `(means [C, d], present [C])` over those that have a class."""
    means, present = (np.stack(part) for part in zip(*each, strict=True))
    count = present.sum(axis=0)
    return (means * present[:, :, None]).sum(axis=0) / np.maximum(count, 1)[:, None], count > 0


def filled(own, common):
    """A client's prototypes, with the common ones for those that it lacks."""
    return np.where(own[1][:, None], own[0], common[0]), own[1] | common[1]


def own_prototypes(units, y, classes):
    units = np.asarray(units)
    means = [units[y == c].mean(axis=0) if np.any(y == c) else 0 * units[0] for c in range(classes)]
    return np.stack(means), np.bincount(y, minlength=classes) > 0


@pytest.mark.parametrize("own_class", [True, False])
def test_closed_form(own_class):
    # Client 1 lacks class 0, client 0 class 2; no client has class 3.
    labels, tau, rounds = np.array([0, 0, 0, 1, 1, 2, 0, 1, 1, 2, 2, 0]), 0.5, 3
    own = [(POINTS[e - n : e], labels[e - n : e]) for e, n in zip(ENDS, SIZES, strict=True)]
    task = quadratics.linear_features()
    w = [np.asarray(task.init(None)["body"]["w"], np.float64)] * 3
    known, common = [], None
    for _ in range(rounds):
        terms = [(common, 1.0)] if known else []
        terms += [(filled(each, common), 1 / 3) for each in known]
        known = []
        for k, (x, y) in enumerate(own):
            for _ in range(STEPS):
                z = x @ w[k]
                length = np.linalg.norm(z, axis=1, keepdims=True)
                u, slope = z / length, np.zeros_like(z)
                for (means, seen), weight in terms:
                    rivals = seen & (own_class | ~np.eye(4, dtype=bool)[y])
                    p = softmax(np.where(rivals, u @ means.T / tau, -1e9))
                    slope += weight * (p - np.eye(4)[y]) @ means / (tau * len(y))
                slope = (slope - u * np.sum(u * slope, axis=1, keepdims=True)) / length
                w[k] = w[k] - ETA * x.T @ slope
            z = x @ w[k]
            known.append(own_prototypes(z / np.linalg.norm(z, axis=1, keepdims=True), y, 4))
        common = mean_prototypes(known)
    assert list(common[1]) == [True, True, True, False]
    local = core.LocalTraining(optax.sgd(ETA), batch_size=8, epochs=STEPS)
    data = federation.examples_of(POINTS, labels.astype(np.int32), SIZES, num_classes=4)
    algorithm = ALGORITHMS["fedpcl"](task, local, tau=tau, own_class=own_class)
    outcome = federation.run(algorithm, data=data, plan=PLAN, rounds=rounds, score=task, devices=2)
    near(outcome.clients.body["body"]["w"], np.stack(w))
    near(outcome.server.prototypes.means, common[0])
    np.testing.assert_array_equal(outcome.server.prototypes.seen, common[1])
    near(outcome.server.each.means, np.stack([means for means, _ in known]))
    right, outputs = [], []
    for (x, y), body, each in zip(own, w, known, strict=True):
        z = x @ body
        cosines = z / np.linalg.norm(z, axis=1, keepdims=True) @ filled(each, common)[0][:3].T
        right.append(np.sum(cosines.argmax(axis=1) == y))
        outputs.append(cosines.sum() + (cosines.min(axis=1) - 1).sum())  # class 3 behind all
    near(outcome.scores["personal"]["test"]["accuracy"], right)
    near(outcome.scores["personal"]["test"]["loss"], outputs)


def test_the_first_round_only_computes_prototypes():
    first, later = (federation.run(federation.make("fedpcl"), rounds=rounds) for rounds in (1, 2))
    start = first.server.initial_params["body"]
    for leaf, initial in zip(
        jax.tree.leaves(first.clients.body["body"]), jax.tree.leaves(start), strict=True
    ):
        np.testing.assert_array_equal(leaf, np.broadcast_to(initial, leaf.shape))
    assert np.all(first.server.prototypes.seen)
    assert federation.differ(later.clients.body, first.clients.body)


def test_a_class_alone_has_no_loss():
    """Without a second class there is nothing to contrast with, and nothing is NaN."""
    algorithm = federation.make("fedpcl")
    examples = jax.tree.map(jnp.asarray, federation.examples())
    server = algorithm.init_server(examples.population(), jax.random.key(0))
    seen = jnp.array([True, False, False])
    server = server._replace(prototypes=Prototypes(jnp.ones((3, 4)), seen))
    client = algorithm.init_client(server, examples.profile(0), jax.random.key(1))
    context = core.Context(jax.random.key(2), jnp.int32(0), jnp.int32(1))
    output = algorithm.client_update(server, client, examples.of_client(0), context)
    federation.assert_close(output.state.body, client.body)


def objective_of(features):
    """The gradient of the contrastive loss with the global and with all clients' prototypes."""

    def contrast(u, y, known, tau):
        cosines, target = u @ known[0].T / tau, jax.nn.one_hot(y, len(known[1]), dtype=bool)
        rivals = jnp.where(known[1] & ~target, jnp.exp(cosines), 0)
        return jnp.mean(jnp.log(jnp.sum(rivals, axis=1)) - cosines[jnp.arange(len(y)), y])

    def objective(model, x, y, common, each, tau):
        z = features(model, x)
        squares = jnp.sum(z**2, axis=1, keepdims=True)
        u = z / jnp.sqrt(jnp.where(squares > 0, squares, 1))
        of_each = [contrast(u, y, own, tau) for own in each]
        return contrast(u, y, common, tau) + sum(of_each) / len(of_each)

    return jax.jit(jax.grad(objective))


def unit(z):
    squares = np.sum(np.asarray(z) ** 2, axis=1, keepdims=True)
    return np.asarray(z) / np.sqrt(np.where(squares > 0, squares, 1))


def test_batch_norm():
    slope_of = objective_of(lambda model, x: plain.features(model, x, True))

    def one_round(server, clients, ids, found):
        common = tuple(server.prototypes)
        means, seen = (np.array(leaf) for leaf in server.each)
        each = [filled((means[j], seen[j]), common) for j in range(len(seen)) if np.any(seen[j])]
        now = []
        for k in ids:
            x, y = plain.examples(k)
            model = {**clients[k].body, "head": server.initial_params["head"]}
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    slope = jax.tree.map(jnp.zeros_like, model)
                    if each:
                        slope = slope_of(model, u, v, common, each, 0.5)
                    model = plain.step(model, slope, u, "body")
            own = own_prototypes(unit(plain.features(model, x, False)), y, 3)
            clients[k] = clients[k]._replace(body={"body": model["body"]}, own=Prototypes(*own))
            means[k], seen[k] = own
            now.append(own)
        new = mean_prototypes(now)
        assert np.all(new[1]), "the loop above has all classes from the first round on"
        return server._replace(prototypes=Prototypes(*new), each=Prototypes(means, seen))

    batch_norm.check("fedpcl", one_round, tau=0.5)


def loop(world: plain_loops.World, tau: float):
    slope_of = objective_of(plain_loops.features)
    common = np.zeros((CLASSES, FEATURES)), np.zeros(CLASSES, bool)
    bodies, known, head = {}, {}, world.params[HEAD]
    for r, cohort in enumerate(world.cohorts):
        each, now = [filled(own, common) for own in known.values()], {}
        for k in cohort:
            theta = vector(bodies.get(k, world.params[BODY]), head)
            for x, y in world.batches(k):
                if each:
                    theta = theta - rate_of(r) * np.asarray(
                        slope_of(theta, x, y, common, each, tau)
                    )
            bodies[k] = theta[BODY]
            units = unit(plain_loops.features(theta, world.x[k]))
            now[k] = own_prototypes(units, world.y[k], CLASSES)
        known |= now
        new = mean_prototypes(now.values())
        common = np.where(new[1][:, None], new[0], common[0]), new[1] | common[1]
        nothing = np.zeros((CLASSES, FEATURES)), np.zeros(CLASSES, bool)
        table = [known.get(k, nothing) for k in range(4)]
        server = vector(
            world.params, *common, *(np.stack(part) for part in zip(*table, strict=True))
        )
        clients = {k: vector(body, *known[k]) for k, body in bodies.items()}
        deployed = {k: vector(body, head, *filled(known[k], common)) for k, body in bodies.items()}
        yield Round(server, clients, deployed)


def test_plain_loop():
    plain_rounds.check("fedpcl", lambda world: loop(world, 0.5), {"tau": 0.5})
