"""FedNTD: distillation of the classes that are not the true one."""

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


@pytest.mark.parametrize("by_size", [True, False])
def test_closed_form(by_size):
    beta, tau, task = 2.0, 1.5, quadratics.linear_classifier()
    model = jax.tree.map(np.asarray, task.init(None))
    w, head = model["body"]["w"], model["head"]["kernel"]

    def others(logits, y):
        """Probabilities `[n, 4]` at the temperature; zero for the true class."""
        powers = np.exp(logits / tau) * (1 - np.eye(4)[y])
        return powers / powers.sum(axis=1, keepdims=True)

    for _ in range(2):
        bodies, heads = [], []
        for end, size in zip(ENDS, SIZES, strict=True):
            x, y = POINTS[end - size : end], LABELS[end - size : end]
            own, kernel, known = w, head, others(x @ w @ head, y)
            for _ in range(STEPS):
                z = x @ own
                lost = beta / tau * (others(z @ kernel, y) - known)
                errors = (softmax(z @ kernel) - np.eye(4)[y] + lost) / size
                own, kernel = own - ETA * x.T @ errors @ kernel.T, kernel - ETA * z.T @ errors
            bodies.append(own)
            heads.append(kernel)
        share = SHARE if by_size else np.full(3, 1 / 3)
        w, head = (np.tensordot(share, np.stack(parts), 1) for parts in (bodies, heads))
    outcome = federation.run(
        ALGORITHMS["fedntd"](task, quadratics.LOCAL, beta=beta, tau=tau, weight_by_size=by_size),
        data=quadratics.LABELED,
        plan=quadratics.PLAN,
        rounds=2,
        score=task,
        devices=2,
    )
    near(outcome.server.params["body"]["w"], w)
    near(outcome.server.params["head"]["kernel"], head)


def test_without_distillation_is_fedavg():
    average = identities.run("fedavg").server.params
    federation.assert_close(identities.run("fedntd", beta=0.0, tau=1.0).server.params, average)
    distilled = identities.run("fedntd", beta=5.0, tau=1.0).server.params
    assert federation.differ(distilled, average)
    assert federation.differ(distilled, identities.run("fedntd", beta=5.0, tau=3.0).server.params)


def lost(known, logits, y, tau):
    """The mean over examples of `sum over c != y of q_c log(q_c / p_c)`."""
    others = 1 - jnp.eye(logits.shape[1])[y]
    q, p = (jnp.exp(a / tau) * others for a in (known, logits))
    q, p = (a / jnp.sum(a, axis=1, keepdims=True) for a in (q, p))
    ratios = jnp.where(others > 0, q, 1) / jnp.where(others > 0, p, 1)
    return jnp.mean(jnp.sum(q * jnp.log(ratios), axis=1))


def test_batch_norm():
    beta, tau = 2.0, 1.5

    def objective(model, x, y, w):
        known, logits = (plain.logits(m, x, True) for m in (w, model))
        return plain.loss(model, x, y) + beta * lost(known, logits, y, tau)

    train = batch_norm.averaged(lambda w, x, y: plain.train(w, x, y, objective, w))
    batch_norm.check("fedntd", train, beta=beta, tau=tau)


def test_plain_loop():
    beta, tau = 2.0, 1.5

    @jax.jit
    @jax.grad
    def slope(theta, x, y, w):
        known, logits = (plain_loops.head(m, plain_loops.features(m, x)) for m in (w, theta))
        return plain_loops.loss(theta, x, y) + beta * lost(known, logits, y, tau)

    def loop(world):
        w = world.params
        for r, cohort in enumerate(world.cohorts):

            def gradient(theta, x, y, w=w):
                return slope(theta, x, y, w)

            w = mean({k: world.train(k, w, rate_of(r), gradient=gradient) for k in cohort})
            yield Round(w, {})

    plain_rounds.check("fedntd", loop, {"beta": beta, "tau": tau})
