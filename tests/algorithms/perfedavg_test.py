"""Per-FedAvg: the gradient after an inner step, with and without its Hessian term."""

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import pytest
import quadratics
from quadratics import ETA, PLAN, POINTS, START, STEPS, near, steps_towards, vector

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling
from pfljax.errors import UserError


def cut_means(points, parts):
    """The mean of each of `parts` pieces of a client's examples, in stored order."""
    cuts = [i * len(points) // parts for i in range(parts + 1)]
    return [points[a:b].mean(axis=0) for a, b in zip(cuts, cuts[1:], strict=False)]


@pytest.mark.parametrize("hessian_free", [False, True])
def test_closed_form(hessian_free):
    # On a quadratic the gradient after the inner step is (1 - alpha) (theta - m1) + m1 - m2; the
    # Hessian is the identity, so that its term is a factor 1 - alpha.
    alpha, w = 0.3, START
    sizes = np.array([4, 3, 5])
    ends = np.cumsum(sizes)
    points = [POINTS[e - n : e] for e, n in zip(ends, sizes, strict=True)]
    data = federation.examples_of(
        POINTS[: ends[-1]], np.zeros(ends[-1], np.int32), sizes, num_classes=1
    )
    parts = 3 if hessian_free else 2
    for _ in range(2):
        models = []
        for own in points:
            *_, m1, m2 = cut_means(own, parts)
            theta = w
            for _ in range(STEPS):
                gradient = (1 - alpha) * (theta - m1) + m1 - m2
                theta = theta - ETA * (1 - alpha if hessian_free else 1) * gradient
            models.append(theta)
        w = np.mean(models, axis=0)
    local = core.LocalTraining(optax.sgd(ETA), batch_size=6, epochs=STEPS, shuffle=False)
    outcome = federation.run(
        ALGORITHMS["perfedavg"](
            quadratics.quadratic(), local, alpha=alpha, hessian_free=hessian_free
        ),
        data=data,
        plan=PLAN,
        rounds=2,
        score=quadratics.quadratic(),
    )
    # The finite differences lose digits of float32.
    np.testing.assert_allclose(vector(outcome.server.params), w, rtol=1e-3, atol=1e-4)
    w = vector(outcome.server.params)
    first = np.stack([own[: 6 // parts].mean(axis=0) for own in points])
    gaps = [
        (own - theta).sum()
        for own, theta in zip(points, steps_towards(w, first, rate=alpha, steps=1), strict=True)
    ]
    near(outcome.scores["personal"]["test"]["loss"], gaps)


def test_without_inner_step_is_fedavg():
    plan = sampling.CohortPlan(num_clients=5, size=5)
    average = identities.run("fedavg", data=identities.twins(), plan=plan)
    meta = identities.run("perfedavg", data=identities.twins(), plan=plan, alpha=0.0)
    federation.assert_close(meta.server.params, average.server.params)
    federation.assert_close(meta.scores["personal"], average.scores["global"])
    other = identities.run("perfedavg", data=identities.twins(), plan=plan, alpha=0.5)
    assert federation.differ(other.server.params, average.server.params)
    assert federation.differ(other.scores["personal"], other.scores["global"])


def test_adapts_for_the_given_number_of_steps():
    # Six steps are one epoch and more of any client; none is the common model.
    none, one, six = (identities.run("perfedavg", alpha=0.5, adaptation_steps=n) for n in (0, 1, 6))
    federation.assert_close(none.server, six.server)
    federation.assert_close(none.scores["personal"], none.scores["global"])
    assert federation.differ(one.scores["personal"], none.scores["personal"])
    assert federation.differ(six.scores["personal"], one.scores["personal"])


def test_the_hessian_term_is_the_derivative_of_the_inner_step():
    # Where the three parts hold the same examples, it is the gradient of the loss after the step.
    alpha, task = 0.4, federation.task()
    thrice = federation.examples_of(
        np.tile(federation.examples().inputs[:2], (3, 1)),
        np.tile(federation.examples().targets[:2], 3),
        np.array([6]),
        num_classes=3,
    )
    data = jax.tree.map(jnp.asarray, thrice).of_client(jnp.int32(0))
    local = core.LocalTraining(optax.sgd(1.0), batch_size=6, shuffle=False)
    algorithm = ALGORITHMS["perfedavg"](task, local, alpha=alpha, hessian_free=True)
    server = algorithm.init_server(None, jax.random.key(0))
    context = core.Context(jax.random.key(1), jnp.int32(0), jnp.int32(1))
    change = core.mean(algorithm.client_update(server, (), data, context).sum)

    def after_a_step(model):
        batch = data.take(jnp.arange(2))
        gradient = jax.grad(task.loss)(model, batch, context.key)
        moved = jax.tree.map(lambda leaf, g: leaf - alpha * g, model, gradient)
        return task.loss(moved, batch, context.key)

    exact = jax.tree.map(jnp.negative, jax.grad(after_a_step)(server.params))
    federation.assert_close(change, exact, tolerance=2e-4)
    first_order = ALGORITHMS["perfedavg"](task, local, alpha=alpha)
    change = core.mean(first_order.client_update(server, (), data, context).sum)
    assert federation.differ(change, exact, least=1e-2)


@pytest.mark.parametrize("hessian_free", [False, True])
def test_batch_norm(hessian_free):
    parts, alpha, delta = 2 + hessian_free, 0.05, 0.01
    local = batch_norm.LOCAL._replace(batch_size=6)

    def slope(model, x, y, number):
        cuts = [i * len(x) // parts for i in range(parts + 1)]
        rows = slice(cuts[number], cuts[number + 1])
        if rows.start == rows.stop:  # no examples, no gradient
            return jax.tree.map(jnp.zeros_like, model)
        return plain.gradient(plain.loss)(model, x[rows], y[rows])

    def train(model, x, y):
        for _ in range(plain.EPOCHS):
            for u, v in plain.batches(x, y, 6):
                adapted = plain.axpy(-alpha, slope(model, u, v, parts - 2), model)
                outer = slope(adapted, u, v, parts - 1)
                if hessian_free:
                    ahead = slope(plain.axpy(delta, outer, model), u, v, 0)
                    behind = slope(plain.axpy(-delta, outer, model), u, v, 0)
                    bent = plain.combine((0.5 / delta, -0.5 / delta), (ahead, behind))
                    outer = plain.axpy(-alpha, bent, outer)
                model = plain.step(model, outer, u)
        return model

    def one_round(server, clients, ids, found):
        trained = [train(server.params, *plain.examples(k)) for k in ids]
        return batch_norm.fed_average(server, trained, ids, [1] * len(ids))

    def personal(server, client, x, y):
        model, steps = server.params, 0
        while steps < 3:
            for u, v in plain.batches(x, y, 6 // parts):
                if steps < 3:
                    model = plain.step(
                        model, plain.gradient(plain.loss)(model, u, v), u, rate=alpha
                    )
                    steps += 1
        return model

    settings = {"alpha": alpha, "delta": delta, "adaptation_steps": 3}
    batch_norm.check(
        "perfedavg",
        one_round,
        personal=personal,
        local=local,
        hessian_free=hessian_free,
        **settings,
    )


def test_batch_norm_needs_two_examples_in_each_part_of_a_batch():
    small = batch_norm.LOCAL._replace(batch_size=3)
    with pytest.raises(UserError, match="batch_size is 3"):
        ALGORITHMS["perfedavg"](batch_norm.TASK, small)
