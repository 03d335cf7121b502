"""FedPHP: inherited private models beside FedAvg."""

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
from plain_loops import ROUNDS, Round, mean, rate_of, vector
from quadratics import ENDS, ETA, LABELS, POINTS, SHARE, SIZES, STEPS, near, softmax

from pfljax.algorithms import ALGORITHMS

BANDWIDTHS = (10, 15, 20, 50)


def pull_to(z, other):
    """`[n, d]`, the sum over pairs of the slope of the kernel, times -n^2 / 2."""
    gaps = z[:, None] - other
    squares = (gaps**2).sum(axis=-1, keepdims=True)
    return (sum(np.exp(-squares / (2 * s)) / s for s in BANDWIDTHS) * gaps).sum(axis=1)


def test_closed_form():
    mu, lam, rounds, task = 0.9, 0.6, 3, quadratics.linear_classifier()
    model = jax.tree.map(np.asarray, task.init(None))
    w, head = model["body"]["w"], model["head"]["kernel"]
    inherited = [(w, head)] * 3
    for round in range(rounds):
        models = []
        for k, (end, size) in enumerate(zip(ENDS, SIZES, strict=True)):
            x, y = POINTS[end - size : end], LABELS[end - size : end]
            (own, kernel), (old, old_kernel) = (w, head), inherited[k]
            for _ in range(STEPS):
                z = x @ own
                errors = (1 - lam) * (softmax(z @ kernel) - np.eye(4)[y]) / size
                apart = lam * 2 / size**2 * (pull_to(z, x @ old) - pull_to(z, z))
                own, kernel = (
                    own - ETA * x.T @ (errors @ kernel.T + apart),
                    kernel - ETA * z.T @ errors,
                )
            m = mu * round / rounds
            inherited[k] = m * old + (1 - m) * own, m * old_kernel + (1 - m) * kernel
            models.append((own, kernel))
        w, head = (np.tensordot(SHARE, np.stack(parts), 1) for parts in zip(*models, strict=True))
    outcome = federation.run(
        ALGORITHMS["fedphp"](task, quadratics.LOCAL, mu=mu, lam=lam),
        data=quadratics.LABELED,
        plan=quadratics.PLAN,
        rounds=rounds,
        score=task,
        devices=2,
    )
    near(outcome.server.params["body"]["w"], w)
    near(outcome.server.params["head"]["kernel"], head)
    near(outcome.clients.params["body"]["w"], np.stack([own for own, _ in inherited]))


def test_without_discrepancy_is_fedavg_with_a_memory():
    average = identities.run("fedavg")
    forgetful = identities.run("fedphp", mu=0.0, lam=0.0)
    federation.assert_close(forgetful.server.params, average.server.params)
    # Without inheritance a client keeps its last trained model, as it does in MOON.
    last = identities.run("moon", mu=0.0, tau=0.5).clients
    federation.assert_close(forgetful.clients.params, last)
    inheriting = identities.run("fedphp", mu=0.9, lam=0.0)
    federation.assert_close(inheriting.server.params, average.server.params)
    assert federation.differ(inheriting.clients.params, last)
    assert federation.differ(identities.run("fedphp", mu=0.9, lam=0.5).server, inheriting.server)


def learned(model, x, y, features, inherited, loss, lam):
    """The weighted loss and discrepancy."""
    a, b = features(model, x), features(inherited, x)

    def kernel(u, v):
        squares = jnp.sum((u[:, None] - v) ** 2, axis=-1)
        return jnp.mean(sum(jnp.exp(-squares / (2 * s)) for s in BANDWIDTHS))

    gap = kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
    return (1 - lam) * loss(model, x, y) + lam * gap


def test_batch_norm():
    mu, lam, rounds = 0.9, 0.6, iter(range(batch_norm.ROUNDS))

    def objective(model, x, y, inherited):
        def features(model, x):
            return plain.features(model, x, True)

        return learned(model, x, y, features, inherited, plain.loss, lam)

    def one_round(server, clients, ids, found):
        trained, progress = [], next(rounds) / batch_norm.ROUNDS
        for k in ids:
            old, started = clients[k]
            model = plain.train(server.params, *plain.examples(k), objective, old)
            m = mu * progress if started else 0
            mixed = plain.combine((m, 1 - m), (old, model))
            clients[k] = clients[k]._replace(params=mixed, started=np.array(True))
            trained.append(model)
        return batch_norm.fed_average(server, trained, ids)

    batch_norm.check("fedphp", one_round, mu=mu, lam=lam)


def test_plain_loop():
    mu, lam = 0.9, 0.6

    @jax.jit
    @jax.grad
    def slope(theta, x, y, inherited):
        return learned(theta, x, y, plain_loops.features, inherited, plain_loops.loss, lam)

    def loop(world):
        w, own = world.params, {}
        for r, cohort in enumerate(world.cohorts):
            models = {}
            for k in cohort:
                old = own.get(k, w)

                def gradient(theta, x, y, old=old):
                    return slope(theta, x, y, old)

                models[k] = world.train(k, w, rate_of(r), gradient=gradient)
                m = mu * r / ROUNDS if k in own else 0
                own[k] = m * old + (1 - m) * models[k]
            w = mean(models)
            yield Round(w, {k: vector(theta, 1) for k, theta in own.items()}, dict(own))

    plain_rounds.check("fedphp", loop, {"mu": mu, "lam": lam})
