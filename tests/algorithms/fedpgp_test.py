"""FedPGP: common prompts, low-rank parts of the clients, and a contrast between both."""

import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_loops
import plain_rounds
import pytest
import quadratics
import trajectories
from plain_loops import HEAD_KERNEL, MODEL, Round, rate_of
from quadratics import ETA, MEANS, SHARE, STEPS, near, personal_gaps

from pfljax import core
from pfljax.algorithms import ALGORITHMS

MU, TAU, RANK = 0.7, 0.4, 2


def of_cosine(x, y):
    """The cosines of rows, and their derivatives in `x` and in `y`."""
    long_x, long_y = (np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    cosine = np.sum(x * y, axis=1, keepdims=True) / (long_x * long_y)
    return (
        cosine[:, 0],
        y / (long_x * long_y) - cosine * x / long_x**2,
        (x / (long_x * long_y) - cosine * y / long_y**2),
    )


def contrast(neutral, common, personal, tau=TAU):
    """The derivatives of the contrast in the features of the common and the personal prompts."""
    positive, _, of_positive = of_cosine(neutral, common)
    negative, of_common, of_personal = of_cosine(common, personal)
    slope = 1 / (1 + np.exp((positive - negative) / tau)) / tau / len(common)
    return slope[:, None] * (of_common - of_positive), slope[:, None] * of_personal


def steps(common, own, gradient, rate, mu=MU):
    """A step of p, U and V along the gradients of the loss in `p + U V` and of the contrast."""
    u, v = own
    of_loss, of_common, of_personal = gradient(common, common + u @ v)
    of_sum = of_loss + mu * of_personal
    moved = common - rate * (of_sum + mu * of_common)
    return moved, (u - rate * of_sum @ v.T, v - rate * u.T @ of_sum)


def quadratic_with_prompts():
    """The quadratic task, whose four weights are two prompts, the features of two classes."""
    task = quadratics.quadratic()

    def of_flat(function):
        def of_matrix(model, *arguments, **named):
            w = model["prompts"].ravel()
            return function({"body": {"w": w[:2]}, "head": {"w": w[2:]}}, *arguments, **named)

        return of_matrix

    first = jnp.array([[0.5, -0.8], [1.1, 0.3]])
    return task._replace(
        init=lambda key: {"prompts": first},
        is_prompt=lambda path: True,
        class_features=lambda model: model["prompts"],
        losses=of_flat(task.losses),
        loss=of_flat(task.loss),
        predict=of_flat(task.predict),
    )


def test_closed_form():
    task = quadratic_with_prompts()
    method = ALGORITHMS["fedpgp"](task, quadratics.LOCAL, mu=MU, tau=TAU, rank=1)
    first = np.random.default_rng(3).normal(size=(3, 2, 1))

    def init_client(server, profile, key):
        u = jnp.asarray(first, jnp.float32)[profile.id]
        return {**method.init_client(server, profile, key), "u": u}

    outcome = federation.run(
        method._replace(init_client=init_client),
        data=quadratics.DATA,
        plan=quadratics.PLAN,
        rounds=2,
        score=task,
        devices=2,
    )
    neutral = common = np.asarray(task.init(None)["prompts"], float)
    own = [(u, np.zeros((1, 2))) for u in first]
    for _ in range(2):
        moved = []
        for k in range(3):

            def gradient(p, personal, k=k):
                return personal - MEANS[k].reshape(2, 2), *contrast(neutral, p, personal)

            p = common
            for _ in range(STEPS):
                p, own[k] = steps(p, own[k], gradient, ETA)
            moved.append(p)
        common = np.tensordot(SHARE, moved, 1)
    near(outcome.server.average.params["prompts"], common)
    near(outcome.server.neutral, neutral)
    near(outcome.clients["u"], np.stack([u for u, _ in own]))
    near(outcome.clients["v"], np.stack([v for _, v in own]))
    deployed = np.stack([(common + u @ v).ravel() for u, v in own])
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(deployed))


def test_plain_loop():
    """The matrix of the head takes the part of the prompts, and its columns that of the classes."""

    def loop(world):
        w, own = world.params.copy(), {}
        shape = (4, 3)
        neutral = np.asarray(world.server.neutral)
        for r, cohort in enumerate(world.cohorts):
            trained = {}
            for k in cohort:
                theta = w.copy()
                factors = own.get(k, tuple(np.asarray(world.clients[n][k]) for n in ("u", "v")))
                for x, y in world.batches(k):
                    others = []

                    def gradient(p, personal, x=x, y=y, theta=theta, others=others):
                        whole = theta.copy()
                        whole[HEAD_KERNEL] = personal.ravel()
                        slope = plain_loops.slope(whole, x, y)
                        others.append(slope)
                        slopes = contrast(neutral.T, p.T, personal.T)
                        return slope[HEAD_KERNEL].reshape(shape), *(g.T for g in slopes)

                    p = theta[HEAD_KERNEL].reshape(shape)
                    p, factors = steps(p, factors, gradient, rate_of(r))
                    theta = theta - rate_of(r) * others[0]
                    theta[HEAD_KERNEL] = p.ravel()
                own[k], trained[k] = factors, theta
            w = plain_loops.mean(trained)
            states = {k: plain_loops.vector(*factors) for k, factors in own.items()}
            deployed = {}
            for k, (u, v) in own.items():
                deployed[k] = w.copy()
                deployed[k][HEAD_KERNEL] += (u @ v).ravel()
            yield Round(w[MODEL], states, deployed)

    settings = {"mu": MU, "tau": TAU, "rank": RANK}
    plain_rounds.check("fedpgp", loop, settings, lambda server: server.average.params)


def test_without_a_part_of_the_client_it_is_fedavg():
    """Common prompts, as in FedAvg of prompts; the rank and the contrast change that."""
    task = federation.two_tower_task()
    average = identities.run("fedavg", task=task)
    common = identities.run("fedpgp", task=task, rank=0, mu=0.0)
    federation.assert_close(common.server.average.params, average.server.params)
    federation.assert_close(common.scores["personal"], average.scores["personal"], 1e-5)
    for options in ({"rank": 2, "mu": 0.0}, {"rank": 0, "mu": 5.0}):
        other = identities.run("fedpgp", task=task, **options)
        assert federation.differ(other.server.average.params, average.server.params, 1e-5), options


def test_the_loss_of_a_trajectory():
    """Two rounds of three clients and three steps on all rows, with a small tower of classes."""
    theirs = trajectories.read_recent("FedPGP-loss.f64")

    def unit(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    with jax.enable_x64(True):
        w1, w2, names = (jnp.asarray(theirs[f"init/{name}"]) for name in ("w1", "w2", "cls"))
        first = jnp.asarray(theirs["init/pG"])

        def class_features(model):
            means = jnp.mean(model["prompts"], axis=0) + names
            return unit(jnp.tanh(means @ w1) @ w2)

        def losses(model, batch, key, train=True):
            logits = 5.0 * unit(batch.inputs) @ class_features(model).T
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)

        task = federation.task()._replace(
            init=lambda key: {"prompts": first},
            is_prompt=lambda path: True,
            class_features=class_features,
            loss=lambda model, batch, key, train=True: core.mean_over(
                losses(model, batch, key), batch.mask
            ),
        )
        local = core.LocalTraining(optax.sgd(0.1), batch_size=26, epochs=3, shuffle=False)
        method = ALGORITHMS["fedpgp"](task, local, mu=1.0, tau=0.5, rank=2)
        images = [theirs[f"init/images/client{k}"] for k in range(3)]
        labels = [theirs[f"init/labels/client{k}"].astype(np.int32) for k in range(3)]
        sizes = np.array([len(rows) for rows in labels])
        data = federation.examples_of(
            np.concatenate(images), np.concatenate(labels), sizes, num_classes=6
        )
        data = jax.tree.map(jnp.asarray, data)
        server = method.init_server(data.population(), jax.random.key(0))
        server = server._replace(neutral=jnp.asarray(theirs["init/neutral"]))
        clients = [
            {name.lower(): jnp.asarray(theirs[f"init/{name}/client{k}"]) for name in "UV"}
            for k in range(3)
        ]

        @jax.jit
        def update(server, client, k):
            context = core.Context(jax.random.key(0), 0, 2, k)
            return method.client_update(server, client, data.of_client(k), context)

        for r in range(2):
            sums = []
            for k in range(3):
                output = update(server, clients[k], jnp.int32(k))
                clients[k] = output.state
                same(clients[k]["u"], theirs[f"round{r}/client{k}/U"])
                same(clients[k]["v"], theirs[f"round{r}/client{k}/V"])
                moved = server.average.params["prompts"] + core.mean(output.sum)["prompts"]
                same(moved, theirs[f"round{r}/client{k}/pG"])
                sums.append(output.sum)
            total = jax.tree.map(lambda *terms: sum(terms), *sums)
            cohort = core.Cohort(jnp.arange(3), jnp.asarray(sizes), 3)
            context = core.Context(jax.random.key(0), r, 2)
            server = method.server_update(server, core.Uploads(total, ()), cohort, context)
            same(server.average.params["prompts"], theirs[f"round{r}/server/pG"])


def same(ours, theirs):
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("point", [0.0, 1.0])
def test_features_of_zero_and_equal_features_have_finite_gradients(point):
    """All prompts are equal at first, and may be zero."""
    task = quadratic_with_prompts()._replace(init=lambda key: {"prompts": jnp.full((2, 2), point)})
    method = ALGORITHMS["fedpgp"](task, quadratics.LOCAL)
    data = jax.tree.map(jnp.asarray, quadratics.DATA)
    server = method.init_server(data.population(), jax.random.key(0))
    client = method.init_client(server, data.profile(jnp.int32(0)), jax.random.key(1))
    context = core.Context(jax.random.key(2), jnp.int32(0), jnp.int32(1), jnp.int32(0))
    output = jax.jit(method.client_update)(server, client, data.of_client(jnp.int32(0)), context)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((output.state, output.sum)))
