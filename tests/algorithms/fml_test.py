"""FML: mutual distillation between a personalized model and the meme."""

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
import pytest
import quadratics
from plain_loops import Round, mean, rate_of
from quadratics import ENDS, ETA, LABELED, LABELS, LOCAL, PLAN, POINTS, SHARE, SIZES, near, softmax

from pfljax import models, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.errors import UserError


def test_closed_form():
    # The gradient of KL(p || softmax(f)) in f is softmax(f) - p, as for the cross-entropy.
    task, alpha, beta = quadratics.linear_classifier(), 0.7, 0.4
    shared = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(task.init(None))]
    own = [shared] * 3
    for _ in range(2):
        memes = []
        for k, (end, n) in enumerate(zip(ENDS, SIZES, strict=True)):
            x, hot = POINTS[end - n : end], np.eye(4)[LABELS[end - n : end]]
            (w, head), (w_m, head_m) = own[k], shared
            for _ in range(quadratics.STEPS):
                z, z_m = x @ w, x @ w_m
                p, p_m = softmax(z @ head), softmax(z_m @ head_m)
                logits = (alpha * (p - hot) + (1 - alpha) * (p - p_m)) / n
                logits_m = (beta * (p_m - hot) + (1 - beta) * (p_m - p)) / n
                w, head = w - ETA * x.T @ logits @ head.T, head - ETA * z.T @ logits
                w_m, head_m = w_m - ETA * x.T @ logits_m @ head_m.T, head_m - ETA * z_m.T @ logits_m
            own[k] = [w, head]
            memes.append([w_m, head_m])
        shared = [np.tensordot(SHARE, np.stack(part), 1) for part in zip(*memes, strict=True)]
    algorithm = ALGORITHMS["fml"](task, LOCAL, alpha=alpha, beta=beta, weight_by_size=True)
    outcome = federation.run(algorithm, data=LABELED, plan=PLAN, rounds=2, score=task, devices=2)
    for ours, theirs in zip(jax.tree.leaves(outcome.server.params), shared, strict=True):
        near(ours, theirs)
    for ours, *theirs in zip(jax.tree.leaves(outcome.clients), *own, strict=True):
        near(ours, np.stack(theirs))


def test_without_distillation_is_local_training_beside_fedavg():
    run = functools.partial(identities.run, "fml", weight_by_size=True, join="initial")
    apart = run(alpha=1.0, beta=1.0)
    federation.assert_close(apart.server, identities.run("fedavg").server)
    federation.assert_close(apart.clients, identities.run("local").clients)
    of_own, of_meme = run(alpha=0.5, beta=1.0), run(alpha=1.0, beta=0.5)
    federation.assert_close(of_own.server, apart.server)
    assert federation.differ(of_own.clients, apart.clients)
    federation.assert_close(of_meme.clients, apart.clients, tolerance=1e-5)
    assert federation.differ(of_meme.server.params, apart.server.params)


def test_shares_a_smaller_model():
    small = tasks.classification(
        models.mlp((federation.NUM_FEATURES,), 3, widths=(2,)), num_classes=3
    )
    outcome = identities.run("fml", meme=small)
    assert outcome.server.params["head"]["kernel"].shape == (2, 3)
    assert outcome.clients["head"]["kernel"].shape == (9, 4, 3)
    assert set(outcome.scores) == {"personal"}
    with pytest.raises(UserError, match="^FML needs classes"):
        federation.make("fml", meme=small._replace(num_classes=0))


def objective_of(logits_of, detach):
    """The gradient of both losses, for the personalized model and the meme."""

    def objective(both, x, y, alpha, beta):
        fixed = jax.lax.stop_gradient if detach else lambda x: x
        f, g = (jax.nn.log_softmax(logits_of(model, x)) for model in both)

        def kl(target, of):
            return jnp.mean(jnp.sum(jnp.exp(target) * (target - of), axis=1))

        rows = jnp.arange(len(y))
        own = -alpha * jnp.mean(f[rows, y]) + (1 - alpha) * kl(fixed(g), f)
        return own - beta * jnp.mean(g[rows, y]) + (1 - beta) * kl(fixed(f), g)

    return jax.jit(jax.grad(objective))


def test_batch_norm():
    slope_of = objective_of(lambda model, x: plain.logits(model, x, True), detach=True)

    def one_round(server, clients, ids, found):
        trained = []
        for k in ids:
            x, y = plain.examples(k)
            both = (clients[k], server.params)
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    slopes = slope_of(both, u, v, 0.7, 0.4)
                    both = tuple(
                        plain.step(model, slope, u)
                        for model, slope in zip(both, slopes, strict=True)
                    )
            clients[k] = both[0]
            trained.append(both[1])
        return batch_norm.fed_average(server, trained, ids, [1] * len(ids))

    batch_norm.check("fml", one_round, alpha=0.7, beta=0.4)


def loop(world: plain_loops.World, alpha: float, beta: float, detach: bool):
    slope_of = objective_of(lambda w, x: plain_loops.head(w, plain_loops.features(w, x)), detach)
    w, own = world.params, {}
    for r, cohort in enumerate(world.cohorts):
        memes = {}
        for k in cohort:
            both = own.get(k, w), w
            for x, y in world.batches(k):
                slopes = slope_of(both, x, y, alpha, beta)
                both = tuple(a - rate_of(r) * g for a, g in zip(both, slopes, strict=True))
            own[k], memes[k] = (np.asarray(theta) for theta in both)
        w = mean(memes, by_size=False)
        yield Round(w, dict(own), dict(own))


@pytest.mark.parametrize("detach", [True, False])
def test_plain_loop(detach):
    settings = {"alpha": 0.7, "beta": 0.4, "detach": detach}
    plain_rounds.check("fml", lambda world: loop(world, **settings), settings)
