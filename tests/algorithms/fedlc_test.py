"""FedLC: logits calibrated by the client's own label counts, or by those of all clients."""

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import plain
import plain_loops
import plain_rounds
import pytest
import quadratics
from plain_loops import Round, mean, rate_of
from quadratics import ENDS, ETA, LABELS, POINTS, SHARE, SIZES, STEPS, near, softmax

from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling


@pytest.mark.parametrize("pooled", [False, True])
def test_closed_form(pooled):
    tau, task = 0.8, quadratics.linear_classifier()
    model = jax.tree.map(np.asarray, task.init(None))
    w, head = model["body"]["w"], model["head"]["kernel"]
    for _ in range(2):
        bodies, heads = [], []
        for end, size in zip(ENDS, SIZES, strict=True):
            x, y = POINTS[end - size : end], LABELS[end - size : end]
            counts = np.bincount(LABELS if pooled else y, minlength=4)
            here = counts > 0
            own, kernel = w, head
            for _ in range(STEPS):
                z = x @ own
                shares = np.zeros((size, 4))
                shares[:, here] = softmax((z @ kernel)[:, here] - tau * counts[here] ** -0.25)
                errors = (shares - np.eye(4)[y]) / size
                own, kernel = own - ETA * x.T @ errors @ kernel.T, kernel - ETA * z.T @ errors
            bodies.append(own)
            heads.append(kernel)
        w, head = (np.tensordot(SHARE, np.stack(parts), 1) for parts in (bodies, heads))
    outcome = federation.run(
        ALGORITHMS["fedlc"](task, quadratics.LOCAL, tau=tau, pooled_counts=pooled),
        data=quadratics.LABELED,
        plan=quadratics.PLAN,
        rounds=2,
        score=task,
        devices=2,
    )
    near(outcome.server.average.params["body"]["w"], w)
    near(outcome.server.average.params["head"]["kernel"], head)


def test_without_margin_is_fedavg_where_clients_have_all_classes():
    options = {"plan": sampling.CohortPlan(num_clients=5, size=5), "data": identities.balanced()}
    average = identities.run("fedavg", **options).server
    federation.assert_close(identities.run("fedlc", tau=0.0, **options).server.average, average)
    assert federation.differ(identities.run("fedlc", tau=5.0, **options).server.average, average)


def test_the_row_of_an_absent_class_does_not_move():
    algorithm = ALGORITHMS["fedlc"](federation.task(), federation.local_training())
    x, y = plain.examples(1)
    absent = sorted(set(range(federation.NUM_CLASSES)) - set(y.tolist()))
    server, _, output = batch_norm.one_client_update(algorithm, 1)
    moved = np.asarray(output.sum.value["head"]["kernel"])
    assert absent and np.all(moved[:, absent] == 0) and np.all(np.any(moved[:, y] != 0, axis=0))


def weights_of(counts, tau):
    """`[C]`, what multiplies the exponentials of the logits: zero for a class without examples."""
    return np.where(counts > 0, np.exp(-tau * np.maximum(counts, 1) ** -0.25), 0)


def calibrated(logits, y, weights):
    """The loss over the classes with examples, written with exponentials."""
    powers = jnp.exp(logits) * weights
    return -jnp.mean(jnp.log(powers[jnp.arange(len(y)), y] / jnp.sum(powers, axis=1)))


def test_batch_norm():
    tau = 0.8

    def objective(model, x, y, weights):
        return calibrated(plain.logits(model, x, True), y, weights)

    def train(w, x, y):
        return plain.train(w, x, y, objective, weights_of(plain.classes(y), tau))

    def one_round(server, clients, ids, found):
        average = batch_norm.averaged(train)(server.average, clients, ids, found)
        return server._replace(average=average)

    batch_norm.check("fedlc", one_round, tau=tau)


def test_plain_loop():
    tau = 0.8

    @jax.jit
    @jax.grad
    def slope(theta, x, y, weights):
        logits = plain_loops.head(theta, plain_loops.features(theta, x))
        return calibrated(logits, y, weights)

    def loop(world):
        w = world.params
        for r, cohort in enumerate(world.cohorts):
            models = {}
            for k in cohort:
                weights = weights_of(np.bincount(world.y[k], minlength=plain_loops.CLASSES), tau)

                def gradient(theta, x, y, weights=weights):
                    return slope(theta, x, y, weights)

                models[k] = world.train(k, w, rate_of(r), gradient=gradient)
            w = mean(models)
            yield Round(w, {})

    plain_rounds.check("fedlc", loop, {"tau": tau}, lambda server: server.average)
