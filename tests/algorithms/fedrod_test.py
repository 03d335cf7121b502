"""FedRoD: a balanced global model, and heads on its features for the clients' own labels."""

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
from plain_loops import BODY, HEAD, Round, mean, rate_of, vector
from quadratics import ENDS, ETA, LABELED, LABELS, LOCAL, PLAN, POINTS, SHARE, SIZES, near, softmax

from pfljax.algorithms import ALGORITHMS


def log_counts(labels, classes):
    """The logarithm of the count of each class; a class without examples is excluded."""
    counts = np.bincount(labels, minlength=classes)
    return np.where(counts > 0, np.log(np.maximum(counts, 1)), -1e9)


def test_closed_form():
    task, gamma = quadratics.linear_classifier(), 0.6
    w, kernel = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(task.init(None)))
    heads = [kernel] * 3
    for _ in range(2):
        models = []
        for k, (end, n) in enumerate(zip(ENDS, SIZES, strict=True)):
            x, y, body, head = POINTS[end - n : end], LABELS[end - n : end], w, kernel
            hot, prior = np.eye(4)[y], gamma * log_counts(y, 4)
            for _ in range(quadratics.STEPS):
                z = x @ body
                balanced = (softmax(z @ head + prior) - hot) / n
                empirical = (softmax(z @ head + z @ heads[k]) - hot) / n
                body, head, heads[k] = (
                    body - ETA * x.T @ balanced @ head.T,
                    head - ETA * z.T @ balanced,
                    heads[k] - ETA * z.T @ empirical,
                )
            models.append((body, head))
        w, kernel = (np.tensordot(SHARE, np.stack(part), 1) for part in zip(*models, strict=True))
    algorithm = ALGORITHMS["fedrod"](task, LOCAL, gamma=gamma)
    outcome = federation.run(algorithm, data=LABELED, plan=PLAN, rounds=2, score=task, devices=2)
    near(outcome.server.params["model"]["body"]["w"], w)
    near(outcome.server.params["model"]["head"]["kernel"], kernel)
    near(outcome.clients["head"]["kernel"], np.stack(heads))
    rows = zip(ENDS, SIZES, heads, strict=True)
    added = [(POINTS[end - n : end] @ w @ (kernel + head)).sum() for end, n, head in rows]
    near(outcome.scores["personal"]["test"]["loss"], added)


def test_without_counts_the_global_model_is_that_of_fedavg():
    plain_softmax, balanced = (identities.run("fedrod", gamma=gamma) for gamma in (0.0, 1.0))
    average = identities.run("fedavg").server.params
    federation.assert_close(plain_softmax.server.params["model"], average)
    assert federation.differ(balanced.server.params["model"], average)
    assert federation.differ(balanced.clients, plain_softmax.clients)


def test_a_hypernetwork_leaves_the_global_model_as_it_is():
    private, generated = (identities.run("fedrod", generated=flag) for flag in (False, True))
    federation.assert_close(generated.server.params["model"], private.server.params["model"])
    assert generated.clients == ()
    one = identities.run("fedrod", generated=True, rounds=1).server.params["hypernetwork"]
    assert federation.differ(generated.server.params["hypernetwork"], one)
    assert federation.differ(generated.scores["personal"], private.scores["personal"])


def test_batch_norm():
    def objective(both, x, y, prior):
        z, fixed = plain.features(both["model"], x, True), jax.lax.stop_gradient
        generic = plain.head(both["model"], z)
        personal = fixed(generic) + plain.head({"head": both["own"]}, fixed(z))
        balanced = plain.entropies(generic + prior, y)
        return jnp.mean(balanced) + jnp.mean(plain.entropies(personal, y))

    def one_round(server, clients, ids, found):
        trained = []
        for k in ids:
            x, y = plain.examples(k)
            both = {"model": server.params["model"], "own": clients[k]["head"]}
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    slope = plain.gradient(objective)(both, u, v, log_counts(y, 3))
                    own = plain.axpy(-plain.RATE, slope["own"], both["own"])
                    both = {"model": plain.step(both["model"], slope["model"], u), "own": own}
            clients[k] = {"head": both["own"]}
            trained.append({"model": both["model"]})
        return batch_norm.fed_average(server, trained, ids)

    batch_norm.check("fedrod", one_round)


def loop(world: plain_loops.World, gamma: float):
    def objective(both, x, y, prior):
        theta, own = both
        z = plain_loops.features(theta, x)
        f = plain_loops.head(theta, z)
        fixed = jax.lax.stop_gradient((z, f))
        personal = fixed[1] + plain_loops.head(jnp.concatenate([theta[BODY] * 0, own]), fixed[0])
        losses = [jax.nn.log_softmax(out)[jnp.arange(len(y)), y] for out in (f + prior, personal)]
        return -jnp.mean(losses[0]) - jnp.mean(losses[1])

    slope = jax.jit(jax.grad(objective))
    w, heads = world.params, {}
    for r, cohort in enumerate(world.cohorts):
        models = {}
        for k in cohort:
            theta, own = w, heads.get(k, w[HEAD])
            for x, y in world.batches(k):
                prior = gamma * log_counts(world.y[k], plain_loops.CLASSES)
                of_theta, of_own = slope((theta, own), x, y, prior)
                theta, own = theta - rate_of(r) * of_theta, own - rate_of(r) * of_own
            models[k], heads[k] = theta, own
        w = mean(models)
        yield Round(w, dict(heads), {k: vector(own, w) for k, own in heads.items()})


def test_plain_loop():
    plain_rounds.check("fedrod", lambda world: loop(world, 0.7), {"gamma": 0.7})


def loop_with_hypernetwork(world: plain_loops.World, gamma: float):
    def generate(network, fractions):
        (layer,) = network["hidden"]
        z = jax.nn.relu(fractions @ layer["kernel"] + layer["bias"])
        heads = network["heads"]
        kernels, biases = jax.tree.leaves(heads["kernel"]), jax.tree.leaves(heads["bias"])
        rows = [
            (jnp.tensordot(z, kernel, 1) + bias).ravel()
            for kernel, bias in zip(kernels, biases, strict=True)
        ]
        return jnp.concatenate(rows)

    def objective(both, x, y, prior, fractions):
        theta, network = both
        z = plain_loops.features(theta, x)
        f = plain_loops.head(theta, z)
        own = jnp.concatenate([theta[BODY] * 0, generate(network, fractions)])
        fixed = jax.lax.stop_gradient((z, f))
        outputs = f + prior, fixed[1] + plain_loops.head(own, fixed[0])
        return -sum(jnp.mean(jax.nn.log_softmax(out)[jnp.arange(len(y)), y]) for out in outputs)

    slope = jax.jit(jax.grad(objective))
    shared = world.params, world.server.params["hypernetwork"]
    counts = [np.bincount(y, minlength=plain_loops.CLASSES) for y in world.y]
    for r, cohort in enumerate(world.cohorts):
        trained = []
        for k in cohort:
            both, prior = shared, gamma * log_counts(world.y[k], plain_loops.CLASSES)
            for x, y in world.batches(k):
                slopes = slope(both, x, y, prior, counts[k] / counts[k].sum())
                both = plain.axpy(-rate_of(r), slopes, both)
            trained.append(both)
        shared = plain.average(trained, [plain_loops.SIZES[k] for k in cohort])
        w, network = shared
        deployed = {k: vector(generate(network, n / n.sum()), w) for k, n in enumerate(counts)}
        yield Round(vector(plain_loops.flat(network), w), {}, deployed)


def test_plain_loop_with_a_hypernetwork():
    settings = {"gamma": 0.7, "generated": True, "hidden": 3}
    plain_rounds.check("fedrod", lambda world: loop_with_hypernetwork(world, 0.7), settings)
