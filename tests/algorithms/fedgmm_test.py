"""FedGMM: federated expectation-maximization, the same on all examples, FedAvg, and FedEM."""

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
from plain_loops import ROUNDS, Round, World, by_array, rate_of, vector
from quadratics import ENDS, ETA, LABELED, LABELS, POINTS, SIZES, softmax

from pfljax.algorithms import ALGORITHMS
from pfljax.algorithms.fedgmm import log_density
from pfljax.core import streams
from pfljax.engine import sampling
from pfljax.errors import UserError
from pfljax.ops import mixtures

RIDGE = 0.2


def densities(z, means, covariances):
    """`[M, n]`, with inverse and determinant."""
    rows = []
    for mean, covariance in zip(means, covariances, strict=True):
        gaps = z - mean
        distances = np.sum(gaps @ np.linalg.inv(covariance) * gaps, axis=1)
        rows.append(-0.5 * (distances + np.log(np.linalg.det(2 * np.pi * covariance))))
    return np.stack(rows)


def responsibilities(mixture, z, means, covariances, losses):
    """`[M1, M2, n]`."""
    joint = np.exp(densities(z, means, covariances)[:, None] - losses) * mixture[..., None]
    return joint / joint.sum(axis=(0, 1))


def estimate(z, weights, added=0.0):
    """Means and covariances of all rows `z` with weights `[M, n]`."""
    total = weights.sum(axis=1) + added
    means = weights @ z / total[:, None]
    gaps = z - means[:, None]
    scatter = np.einsum("mn,mni,mnj->mij", weights, gaps, gaps) / total[:, None, None]
    return means, scatter + RIDGE * np.eye(z.shape[1])


def maximize(zs, weights, released):
    """The M step of the server, of the rows and weights of each client."""
    if not released:
        return estimate(np.concatenate(zs), np.concatenate(weights, axis=1))
    each = [estimate(z, w, RIDGE) for z, w in zip(zs, weights, strict=True)]
    counts = np.stack([w.sum(axis=1) for w in weights])
    counts = counts / counts.sum(axis=0)
    return tuple(
        np.einsum("km,km...->m...", counts, np.stack(part)) for part in zip(*each, strict=True)
    )


def logs_of(mixture, z, means, covariances, probabilities):
    """Log probabilities `[n, C]` of a client, from those `[M2, n, C]` of the learners."""
    weights = mixture[..., None] * np.exp(densities(z, means, covariances))[:, None]
    shares = (weights / weights.sum(axis=(0, 1))).sum(axis=0)
    return np.log(np.einsum("mn,mnc->nc", shares, probabilities))


def task_with_random_heads():
    task = quadratics.linear_classifier()

    def init(key):
        kernel = jax.random.normal(key, (2, 4))
        return {**task.init(key), "head": {"kernel": kernel}}

    return task._replace(init=init)


def test_closed_form():
    # The body of this task is linear: the features of the encoder are z = x W.
    task, local = task_with_random_heads(), quadratics.LOCAL
    rule = {"components": 2, "learners": 2, "ridge": RIDGE}
    method = ALGORITHMS["fedgmm"](task, local, **rule)
    key = streams.key_of(jax.random.key(0), streams.SERVER_INIT)
    start = jax.tree.map(np.asarray, method.init_server(None, key))
    outcome = federation.run(
        method, data=LABELED, plan=quadratics.PLAN, rounds=2, score=task, devices=2
    )
    own = [(POINTS[e - n : e], LABELS[e - n : e]) for e, n in zip(ENDS, SIZES, strict=True)]
    zs = [x @ start.encoder["params"]["body"]["w"] for x, _ in own]
    bodies = [w for w in start.average.params["body"]["w"]]
    heads = [w for w in start.average.params["head"]["kernel"]]
    common, mixture = tuple(start.components), np.full((3, 2, 2), 0.25)
    for _ in range(2):
        found, sums = [], [[0, 0, 0], [0, 0, 0]]
        for k, (x, y) in enumerate(own):
            target = np.eye(4)[y]
            outputs = [softmax(x @ w @ h) for w, h in zip(bodies, heads, strict=True)]
            losses = np.stack([-np.log(p[np.arange(len(y)), y]) for p in outputs])
            q = responsibilities(mixture[k], zs[k], *common, losses)
            mixture[k] = q.mean(axis=2)
            found.append(q.sum(axis=1))
            for b in range(2):
                w, h, of_learner = bodies[b], heads[b], q[:, b].sum(axis=0)
                for _ in range(quadratics.STEPS):
                    gap = (softmax(x @ w @ h) - target) * of_learner[:, None] / len(y)
                    w, h = w - ETA * x.T @ gap @ h.T, h - ETA * (x @ w).T @ gap
                weight = of_learner.sum()
                terms = (weight, weight * w, weight * h)
                sums[b] = [a + t for a, t in zip(sums[b], terms, strict=True)]
        bodies, heads = ([total[i] / total[0] for total in sums] for i in (1, 2))
        common = maximize(zs, found, released=False)
    for ours, theirs in (
        (outcome.server.average.params["body"]["w"], bodies),
        (outcome.server.average.params["head"]["kernel"], heads),
        (outcome.server.components.means, common[0]),
        (outcome.server.components.covariances, common[1]),
        (outcome.clients, mixture),
    ):
        np.testing.assert_allclose(ours, np.stack(theirs), rtol=2e-4, atol=2e-5)
    logs = []
    for k, (x, _) in enumerate(own):
        outputs = np.stack([softmax(x @ w @ h) for w, h in zip(bodies, heads, strict=True)])
        logs.append(logs_of(mixture[k], zs[k], *common, outputs).sum())
    np.testing.assert_allclose(outcome.scores["personal"]["test"]["loss"], logs, rtol=1e-4)


def test_moments_are_those_of_all_examples_together():
    draw = np.random.default_rng(0)
    z, weights = draw.normal(size=(30, 4)), draw.uniform(size=(3, 30))
    known = mixtures.Components(draw.normal(size=(3, 4)), np.tile(np.eye(4), (3, 1, 1)))
    weights[2] = 0  # a component without examples
    with jax.enable_x64(True):
        known = jax.tree.map(jnp.asarray, known)
        none = mixtures.no_moments(known)
        parts = [
            none.add(z[r], weights[:, r], known.means) for r in np.split(np.arange(30), [4, 9])
        ]
        total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
        for added in (0.0, RIDGE):
            found = total.components(known, RIDGE, added)
            for ours, wanted, old in zip(
                found, estimate(z, weights + 1e-300, added), known, strict=True
            ):
                np.testing.assert_allclose(ours[:2], wanted[:2], rtol=1e-12, atol=1e-12)
                np.testing.assert_array_equal(ours[2], old[2])
        logs = found.log_densities(jnp.asarray(z))
    found = jax.tree.map(np.asarray, found)
    np.testing.assert_allclose(logs, densities(z, *found), rtol=1e-10)


def test_the_random_projection_is_orthonormal_and_keeps_few_features():
    basis = mixtures.projection(jax.random.key(0), 9, 4, jnp.float32)
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-6)
    np.testing.assert_array_equal(
        mixtures.projection(jax.random.key(0), 3, 4, jnp.float32), np.eye(3)
    )


def test_recovers_a_known_mixture():
    # Two normal distributions, of which each of six clients has other fractions.
    draw, size = np.random.default_rng(1), 60
    fractions = np.array([0.9, 0.8, 0.6, 0.4, 0.2, 0.1])
    means = np.array([[2.0, 0, 0, 0, 1], [-1, 2, 1, 0, 0]])
    scale = np.linalg.cholesky(np.diag([1, 0.5, 2, 1, 1]) + 0.3)
    member = np.concatenate([np.arange(size) >= fraction * size for fraction in fractions])
    inputs = means[member.astype(int)] + draw.normal(size=(6 * size, 5)) @ scale.T
    data = federation.examples_of(
        inputs.astype(np.float32), member.astype(np.int32), np.full(6, size), num_classes=3
    )
    inputs_themselves = federation.task()._replace(
        num_features=5, features=lambda params, inputs, mask=None, key=None: inputs
    )
    outcome = identities.run(
        "fedgmm",
        data=data,
        plan=sampling.CohortPlan(6, 6),
        rounds=40,
        components=2,
        learners=1,
        ridge=1e-3,
        encoder=inputs_themselves,
    )
    found = outcome.server.components
    order = np.argsort(-found.means[:, 0])
    np.testing.assert_allclose(found.means[order], means, atol=0.35)
    np.testing.assert_allclose(outcome.clients[:, order[0], 0], fractions, atol=0.08)
    truth = np.diag([1, 0.5, 2, 1, 1]) + 0.3
    np.testing.assert_allclose(found.covariances, np.stack([truth, truth]), atol=0.5)


def test_with_one_learner_is_fedavg_and_its_first_weights_are_those_of_fedem():
    fixed = federation.task().init(jax.random.key(7))
    alike = federation.task()._replace(init=lambda key: fixed)
    single = identities.run("fedgmm", task=alike, learners=1)
    learner = jax.tree.map(lambda leaf: leaf[0], single.server.average.params)
    federation.assert_close(learner, identities.run("fedavg", task=alike).server.params, 5e-6)
    assert federation.differ(single.clients, np.full_like(single.clients, 1 / 3))
    # With uniform weights, distributions and learners are independent in the first round.
    two, em = (identities.run(name, rounds=1, learners=2) for name in ("fedgmm", "fedem"))
    federation.assert_close(two.clients.sum(axis=1), em.clients)
    # FedEM averages without the weights of the learners.
    assert federation.differ(two.server.average.params, em.server.average.params)


def test_batch_norm():
    learners, parts = 2, 2

    def rows(model):
        return [jax.tree.map(lambda leaf, m=m: leaf[m], model) for m in range(learners)]

    def points(server, x):
        z = np.asarray(plain.features(server.encoder["params"], x, False))
        return z @ server.encoder["projection"]

    def shares(server, mixture, x, y):
        losses = [plain.losses(model, x, y, False) for model in rows(server.average.params)]
        return responsibilities(mixture, points(server, x), *server.components, np.stack(losses))

    def objective(model, x, y, weights):
        return jnp.mean(weights * plain.losses(model, x, y))

    def one_round(server, clients, ids, found):
        trained, weights, zs, qs = [[], []], [[], []], [], []
        for k in ids:
            x, y = plain.examples(k)
            q = shares(server, clients[k], x, y)
            for m, model in enumerate(rows(server.average.params)):
                of_learner = q[:, m].sum(axis=0)
                for _ in range(plain.EPOCHS):
                    for start in range(0, len(y), plain.BATCH):
                        part = slice(start, start + plain.BATCH)
                        slope = plain.gradient(objective)
                        slope = slope(model, x[part], y[part], of_learner[part])
                        model = plain.step(model, slope, x[part])
                trained[m].append(jax.tree.map(np.asarray, model))
                weights[m].append(of_learner.sum())
            clients[k] = q.mean(axis=2)
            zs.append(points(server, x))
            qs.append(q.sum(axis=1))
        means = [plain.average(*of_one) for of_one in zip(trained, weights, strict=True)]
        stacked = jax.tree.map(lambda *leaf: np.stack(leaf), *means)
        return server._replace(
            average=server.average._replace(params=stacked),
            components=mixtures.Components(*maximize(zs, qs, False)),
        )

    rule = {"components": parts, "learners": learners, "dimensions": 3, "ridge": RIDGE}
    batch_norm.check("fedgmm", one_round, **rule)


@pytest.mark.parametrize("released", [False, True])
def test_plain_loop(released):
    @jax.jit
    @jax.grad
    def slope(w, x, y, weights):
        return jnp.mean(weights * plain_loops.example_losses(w, x, y))

    def rows(params):
        leaves = jax.tree.leaves(params)
        return [np.concatenate([np.ravel(leaf[c]) for leaf in leaves]) for c in range(2)]

    def loop(world: World):
        models = rows(world.server.average.params)
        encoder = plain_loops.flat(world.server.encoder["params"])
        basis = world.server.encoder["projection"]
        common = tuple(np.asarray(part) for part in world.server.components)
        zs = [np.asarray(plain_loops.features(encoder, x)) @ basis for x in world.x]
        fixed, own = vector(encoder, basis), {}
        for r, cohort in enumerate(world.cohorts):
            qs, trained = {}, {}
            for k in cohort:
                x, y = world.x[k], world.y[k]
                losses = np.stack([plain_loops.example_losses(w, x, y) for w in models])
                before = own.get(k, np.full((2, 2), 0.25))
                qs[k] = responsibilities(before, zs[k], *common, losses)
                own[k] = qs[k].mean(axis=2)
                trained[k] = []
                for b, w in enumerate(models):
                    weights = qs[k][:, b].sum(axis=0)
                    for _ in range(plain_loops.EPOCHS):
                        for start in range(0, len(y), plain_loops.BATCH):
                            part = slice(start, start + plain_loops.BATCH)
                            step = np.asarray(slope(w, x[part], y[part], weights[part]))
                            w = w - rate_of(r) * step
                    trained[k].append(w)
            for b in range(2):
                weights = np.array([qs[k][:, b].sum() for k in cohort])
                models[b] = weights @ np.stack([trained[k][b] for k in cohort]) / weights.sum()
            common = maximize(
                [zs[k] for k in cohort], [qs[k].sum(axis=1) for k in cohort], released
            )
            state = vector(by_array(np.stack(models)), *common, fixed)
            deployed = {}
            for k in own if r == ROUNDS - 1 else ():
                deployed[k] = vector(*common, fixed, by_array(np.stack(models)), own[k])
            yield Round(state, {k: pi.ravel() for k, pi in own.items()}, deployed)

    rule = {"components": 2, "learners": 2, "ridge": RIDGE, "released": released}
    plain_rounds.check("fedgmm", loop, rule)


def test_an_encoder_without_features_is_refused():
    with pytest.raises(UserError, match="^FedGMM needs features"):
        ALGORITHMS["fedgmm"](
            federation.task(),
            federation.local_training(),
            encoder=federation.task()._replace(num_features=0),
        )


def test_predictions_stay_finite_far_from_all_distributions():
    method = ALGORITHMS["fedgmm"](federation.task(), federation.local_training())
    examples = jax.tree.map(jnp.asarray, federation.examples())

    @jax.jit
    def predict(shift):
        server = method.init_server(examples.population(), jax.random.key(0))
        common = server.components._replace(means=server.components.means + shift)
        client = method.init_client(server, None, jax.random.key(1))
        far = server._replace(components=common)
        model = method.personalize(far, client, examples.of_client(0), None)
        return method.predict(model, examples.inputs, jax.random.key(2))

    for shift in (0.0, 1e6):
        sums = jnp.sum(jnp.exp(predict(shift)), axis=1)
        np.testing.assert_allclose(sums, 1, rtol=1e-5)


def test_the_density_of_inputs_is_that_of_the_mixture_over_all_labels():
    draw = np.random.default_rng(5)
    mixture = draw.dirichlet(np.ones(6)).reshape(2, 3)
    means, roots = draw.normal(size=(2, 3)), draw.normal(size=(2, 3, 3))
    covariances = roots @ roots.transpose(0, 2, 1) + np.eye(3)
    scale, basis = draw.normal(size=4), draw.normal(size=(4, 3))
    inputs = draw.normal(size=(5, 4))
    params = {
        "components": mixtures.Components(jnp.asarray(means), jnp.asarray(covariances)),
        "mixture": jnp.asarray(mixture),
        "encoder": {"params": jnp.asarray(scale), "projection": jnp.asarray(basis)},
    }
    found = log_density(params, lambda scale, inputs: inputs * scale, jnp.asarray(inputs))
    each = np.exp(densities(inputs * scale @ basis, means, covariances))
    np.testing.assert_allclose(found, np.log(mixture.sum(axis=1) @ each), rtol=1e-4)
