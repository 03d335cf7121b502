"""MOON: features near those of the global model and far from the client's last ones."""

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
from plain_loops import Round, mean, rate_of
from quadratics import ENDS, ETA, LABELS, POINTS, SHARE, SIZES, STEPS, near, softmax

from pfljax.algorithms import ALGORITHMS


def slope_of_cosine(z, a):
    """`[n, d]`, the gradient of `cos(z, a)` in `z`, row by row."""
    z_norm, a_norm = (np.linalg.norm(x, axis=1, keepdims=True) for x in (z, a))
    cos = np.sum(z * a, axis=1, keepdims=True) / (z_norm * a_norm)
    return cos, a / (z_norm * a_norm) - cos * z / z_norm**2


def test_closed_form():
    mu, tau, task = 2.0, 0.7, quadratics.linear_classifier()
    model = jax.tree.map(np.asarray, task.init(None))
    w, head = model["body"]["w"], model["head"]["kernel"]
    last = [w] * 3
    for _ in range(3):
        bodies, heads, received = [], [], w
        for k, (end, size) in enumerate(zip(ENDS, SIZES, strict=True)):
            x, y = POINTS[end - size : end], LABELS[end - size : end]
            own, kernel = received, head
            for _ in range(STEPS):
                z = x @ own
                errors = (softmax(z @ kernel) - np.eye(4)[y]) / size
                near_it, towards = slope_of_cosine(z, x @ received)
                far, away = slope_of_cosine(z, x @ last[k])
                share = 1 / (1 + np.exp((near_it - far) / tau))  # of the last model
                contrast = mu / (tau * size) * share * (away - towards)
                own, kernel = (
                    own - ETA * x.T @ (errors @ kernel.T + contrast),
                    kernel - ETA * z.T @ errors,
                )
            last[k] = own
            bodies.append(own)
            heads.append(kernel)
        w, head = (np.tensordot(SHARE, np.stack(parts), 1) for parts in (bodies, heads))
    outcome = federation.run(
        ALGORITHMS["moon"](task, quadratics.LOCAL, mu=mu, tau=tau),
        data=quadratics.LABELED,
        plan=quadratics.PLAN,
        rounds=3,
        score=task,
        devices=2,
    )
    near(outcome.server.params["body"]["w"], w)
    near(outcome.server.params["head"]["kernel"], head)
    near(outcome.clients["body"]["w"], np.stack(last))


def test_without_contrast_is_fedavg():
    average = identities.run("fedavg").server.params
    federation.assert_close(identities.run("moon", mu=0.0, tau=0.5).server.params, average)
    contrasted = identities.run("moon", mu=5.0, tau=0.5).server.params
    assert federation.differ(contrasted, average)
    assert federation.differ(contrasted, identities.run("moon", mu=5.0, tau=1.0).server.params)


def test_features_of_zeros_are_no_nan():
    task = federation.task()
    dead = jax.tree.map(jnp.zeros_like, task.init(jax.random.key(0)))
    algorithm = ALGORITHMS["moon"](
        task._replace(init=lambda key: dead), federation.local_training()
    )
    _, _, output = batch_norm.one_client_update(algorithm, 0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(output))


def contrasted(model, x, y, features, common, last, loss, mu, tau):
    """The loss and the term, as the paper writes it."""

    def similarity(a, b):
        squares = jnp.sum(a**2, axis=1) * jnp.sum(b**2, axis=1)
        return jnp.sum(a * b, axis=1) / jnp.sqrt(jnp.where(squares > 0, squares, 1))

    z = features(model, x)
    g, p = (jnp.exp(similarity(z, features(m, x)) / tau) for m in (common, last))
    return loss(model, x, y) - mu * jnp.mean(jnp.log(g / (g + p)))


def test_batch_norm():
    mu, tau = 2.0, 0.5

    def objective(model, x, y, common, last):
        def features(model, x):
            return plain.features(model, x, True)

        return contrasted(model, x, y, features, common, last, plain.loss, mu, tau)

    def one_round(server, clients, ids, found):
        w, trained = server.params, []
        for k in ids:
            trained.append(plain.train(w, *plain.examples(k), objective, w, clients[k]))
            clients[k] = trained[-1]
        return batch_norm.fed_average(server, trained, ids)

    batch_norm.check("moon", one_round, mu=mu, tau=tau)


def test_plain_loop():
    mu, tau = 2.0, 0.5

    @jax.jit
    @jax.grad
    def slope(theta, x, y, common, last):
        parts = (plain_loops.features, common, last, plain_loops.loss)
        return contrasted(theta, x, y, *parts, mu, tau)

    def loop(world):
        w, own = world.params, {}
        for r, cohort in enumerate(world.cohorts):
            models = {}
            for k in cohort:
                last = own.get(k, w)

                def gradient(theta, x, y, w=w, last=last):
                    return slope(theta, x, y, w, last)

                models[k] = world.train(k, w, rate_of(r), gradient=gradient)
            own |= models
            w = mean(models)
            yield Round(w, dict(own))

    plain_rounds.check("moon", loop, {"mu": mu, "tau": tau})
