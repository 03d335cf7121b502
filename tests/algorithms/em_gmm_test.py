"""EM-GMM: expectation-maximization of all examples, whitened messages, clipping, own weights."""

import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import plain_rounds
import pytest
import quadratics
from plain_loops import ROUNDS, Round, World, vector
from quadratics import LABELED, LABELS, POINTS

from pfljax import aggregation
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling
from pfljax.engine.examples import Examples
from pfljax.engine.programs import Inputs, Method
from pfljax.ops import diagonal_mixtures

RULE = {"components": 3, "split_every": 1, "variance_floor": 0.2, "least_weight": 0.05}
RULE |= {"label_floor": 0.1}


def joint(mixture, pi, x, y):
    """`[M, n]`, `pi_a N(x; mu_a, v_a) theta_a(y)` with the products of densities written out."""
    _, means, variances, labels = mixture
    gaps = (x - means[:, None]) ** 2 / variances[:, None]
    densities = np.exp(-gaps / 2) / np.sqrt(2 * np.pi * variances)[:, None]
    return pi[:, None] * np.prod(densities, axis=2) * labels[:, y]


def estimate(mixture, x, y, q, rule):
    """The estimates of all rows `x` with responsibilities `[M, n]`, from the textbook."""
    weights, means, variances, labels = (part.copy() for part in mixture)
    center = weights @ means
    floor = rule["variance_floor"] * (weights @ (variances + (means - center) ** 2))
    share = q.sum(axis=1) / len(x)
    for a in range(len(weights)):
        weights[a] = share[a] if share[a] >= max(rule["least_weight"], 1e-6) else 0
        if weights[a] == 0:
            continue
        means[a] = q[a] @ x / q[a].sum()
        variances[a] = np.maximum(q[a] @ (x - means[a]) ** 2 / q[a].sum(), floor)
        found = np.array([q[a][y == c].sum() for c in range(labels.shape[1])]) / q[a].sum()
        labels[a] = (1 - rule["label_floor"]) * found + rule["label_floor"] / len(found)
    return weights / weights.sum(), means, variances, labels


def split(mixture):
    """The component of greatest weight in two parts, if one of the slots is free."""
    weights, means, variances, labels = (part.copy() for part in mixture)
    if (weights > 0).all():
        return mixture
    a, free = int(np.argmax(weights)), int(np.argmax(weights == 0))
    weights[[a, free]] = weights[a] / 2
    half = np.sqrt(variances[a]) / 2
    means[free], means[a] = means[a] + half, means[a] - half
    variances[free], labels[free] = variances[a], labels[a]
    return weights, means, variances, labels


def with_inputs(task, size):
    return task._replace(input_shape=(size,))


def test_closed_form():
    # One component: the mean, the variance and the frequencies of the labels of all examples.
    task = with_inputs(quadratics.linear_classifier(), 4)
    rule = {"components": 1, "variance_floor": 0.0, "label_floor": 0.0}
    method = ALGORITHMS["em_gmm"](task, quadratics.LOCAL, **rule)
    outcome = federation.run(
        method, data=LABELED, plan=quadratics.PLAN, rounds=2, score=task, devices=2
    )
    mixture = outcome.server
    np.testing.assert_allclose(mixture.means[0], POINTS.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixture.variances[0], POINTS.var(axis=0), rtol=1e-5)
    shares = np.bincount(LABELS) / len(LABELS)
    np.testing.assert_allclose(mixture.labels[0], shares, rtol=1e-5)
    # The second round reports the likelihood of these estimates, the mean over clients.
    normal = -0.5 * np.sum(np.log(2 * np.pi * POINTS.var(axis=0)))
    gaps = np.sum((POINTS - POINTS.mean(axis=0)) ** 2 / POINTS.var(axis=0), axis=1)
    losses = gaps / 2 - normal - np.log(shares[LABELS])
    parts = np.split(losses, quadratics.ENDS[:-1])
    np.testing.assert_allclose(
        outcome.metrics["loss"][1], np.mean([part.mean() for part in parts]), rtol=1e-5
    )
    # What a client deploys are the frequencies, whatever the inputs.
    scores = outcome.scores["personal"]["test"]["loss"]
    np.testing.assert_allclose(scores, quadratics.SIZES * np.log(shares).sum(), rtol=1e-4)


def run_in_float64(rounds, data=None, **rule):
    """All four clients of the plain loops in every round, in float64."""
    data = plain_rounds.examples() if data is None else data
    with jax.enable_x64(True):
        local = federation.local_training(shuffle=False)
        method = ALGORITHMS["em_gmm"](plain_rounds.task(), local, **rule)
        plan = sampling.CohortPlan(4, 4)
        return federation.run(
            method, data=data, plan=plan, rounds=rounds, score=plain_rounds.task(), chunk=2
        )


def test_with_all_clients_is_centralized_expectation_maximization():
    data = plain_rounds.examples()
    x, y = np.asarray(data.inputs), np.asarray(data.targets)
    mixture = tuple(np.asarray(part) for part in diagonal_mixtures.single(3, 5, 3, jnp.float32))
    mixture = tuple(part.astype(np.float64) for part in mixture)
    mixture = (*mixture[:3], np.full((3, 3), 1 / 3))
    for _ in range(6):
        likelihood = joint(mixture, mixture[0], x, y)
        mixture = split(estimate(mixture, x, y, likelihood / likelihood.sum(axis=0), RULE))
    outcome = run_in_float64(6, **RULE)
    for ours, wanted in zip(outcome.server, mixture, strict=True):
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, wanted, rtol=1e-10, atol=1e-10)
    assert np.all(outcome.server.weights > 0)
    # The scales of the messages cancel.
    scaled = run_in_float64(6, **RULE, count_scale=3.0, variance_scale=0.2)
    federation.assert_close(scaled.server, outcome.server, 1e-10)


def test_the_likelihood_of_all_examples_grows():
    rule = {"components": 2, "split_every": 2, "variance_floor": 0.0, "least_weight": 0.0}
    sizes = np.array([8, 8, 8, 7])  # the metric is a mean over clients
    whole = plain_rounds.examples()
    equal = federation.examples_of(whole.inputs, whole.targets, sizes, num_classes=3)
    losses = run_in_float64(12, equal, **rule, label_floor=0.0).metrics["loss"]
    assert np.all(np.diff(losses[3:]) < 1e-12)
    assert losses[-1] < losses[3] - 0.1


@pytest.mark.parametrize("own_weight", [0.0, 0.3])
def test_plain_loop(own_weight):
    def loop(world: World):
        mixture, own = tuple(np.asarray(part) for part in world.server), {}

        def weights_of(k):
            pi = (mixture[0] + own_weight * own.get(k, np.zeros(3))) * (mixture[0] > 0)
            return pi / pi.sum()

        for r, cohort in enumerate(world.cohorts):
            qs = []
            for k in cohort:
                likelihood = joint(mixture, weights_of(k), world.x[k], world.y[k])
                qs.append(likelihood / likelihood.sum(axis=0))
            for k, q in zip(cohort, qs, strict=True):
                own[k] = q.sum(axis=1)
            rows = np.concatenate([world.x[k] for k in cohort])
            labels = np.concatenate([world.y[k] for k in cohort])
            mixture = split(estimate(mixture, rows, labels, np.concatenate(qs, axis=1), RULE))
            deployed = {}
            for k in range(4) if r == ROUNDS - 1 else ():
                deployed[k] = vector(weights_of(k), *mixture[1:])
            yield Round(vector(*mixture), dict(own), deployed)

    plain_rounds.check("em_gmm", loop, {**RULE, "own_weight": own_weight})


def test_own_weights_of_zero_are_the_common_ones():
    common, own = (identities.run("em_gmm", own_weight=value) for value in (0.0, 0.5))
    assert federation.differ(own.server.means, common.server.means)
    data = jax.tree.map(jnp.asarray, federation.examples())
    for value, outcome in ((0.0, common), (0.5, own)):
        method = ALGORITHMS["em_gmm"](
            federation.task(), federation.local_training(), own_weight=value
        )
        took_part = int(np.argmax(outcome.clients.sum(axis=1)))
        deployed = method.personalize(
            outcome.server, outcome.clients[took_part], data.of_client(took_part), None
        )
        assert federation.differ(deployed.weights, outcome.server.weights) == (value > 0)


def test_batch_norm_of_a_network_changes_nothing():
    # The network is not used.
    plain, norm = (
        identities.run("em_gmm", own_weight=0.0, task=federation.task(name))
        for name in ("mlp", "mlp_bn")
    )
    federation.assert_close(plain.server, norm.server, 1e-6)


def drawn_from(mixture, number):
    draw, (weights, means, variances, labels) = np.random.default_rng(0), mixture
    member = draw.choice(len(weights), number, p=weights)
    x = means[member] + np.sqrt(variances[member]) * draw.normal(size=(number, means.shape[1]))
    return x, np.array([draw.choice(labels.shape[1], p=labels[a]) for a in member])


def some_mixture():
    draw = np.random.default_rng(3)
    means, variances = draw.normal(size=(2, 6)), draw.uniform(0.5, 2, size=(2, 6))
    labels = np.array([[0.7, 0.3], [0.2, 0.8]])
    return diagonal_mixtures.Mixture(np.array([0.5, 0.5]), means, variances, labels)


def test_blocks_have_comparable_norms_in_any_units():
    mixture = some_mixture()
    x, y = drawn_from(mixture, 4000)
    units = 10.0 ** np.arange(-2, 4)  # of the inputs
    in_units = mixture._replace(means=mixture.means * units, variances=mixture.variances * units**2)
    with jax.enable_x64(True):
        of_one = jax.vmap(diagonal_mixtures.Statistics.of, in_axes=(None, 0, 0, 0))
        each, other = (
            of_one(m, jnp.asarray(rows)[:, None], jnp.asarray(y)[:, None], jnp.ones((4000, 1)))[0]
            for m, rows in ((mixture, x), (in_units, x * units))
        )
    federation.assert_close(each, other, 1e-9)
    sizes = [np.sqrt(np.mean(np.sum(np.square(block), axis=(1, 2)))) for block in each]
    assert min(sizes) > 0.75 and max(sizes) < 1.2


def equal_clients() -> Examples:
    x, y = drawn_from(some_mixture(), 40)
    return federation.examples_of(
        x[:, :5].astype(np.float32), y.astype(np.int32), np.full(4, 10), num_classes=3
    )


def test_clipping_and_noise():
    plan = sampling.CohortPlan(4, 4)

    def make(frozen, values, server_data):
        method = ALGORITHMS["em_gmm"](federation.task(), federation.local_training())
        return Method(aggregation.apply(method, aggregation.clip(**values)), federation.task())

    programs = federation.programs(make, plan=plan, rounds=4)

    def server_of(**settings):
        values = {name: jnp.float32(value) for name, value in settings.items()}
        return programs.run(equal_clients(), Inputs(values=values)).server

    plain = identities.run("em_gmm", data=equal_clients(), plan=plan, rounds=4).server
    wide = server_of(bound=100.0, noise_multiplier=0.0)
    # All clients count equally, and they are equally large here.
    federation.assert_close(plain, wide, 1e-5)
    assert federation.differ(plain, server_of(bound=0.3, noise_multiplier=0.0), least=1e-2)
    little, much = (server_of(bound=5.0, noise_multiplier=noise) for noise in (1e-4, 1.0))
    federation.assert_close(plain, little, 0.05)
    assert federation.differ(plain, little, least=1e-6)
    assert all(np.all(np.isfinite(leaf)) for leaf in much)
    assert np.all(much.variances > 0) and np.all(much.weights >= 0)
    np.testing.assert_allclose(np.sum(much.weights), 1, rtol=1e-5)


def test_noise_on_the_estimates_has_the_calibrated_deviation():
    # With one component a noise of deviation s on the mean statistics moves the mean by
    # sqrt(v d) s, and the number of clients divides it.
    known = diagonal_mixtures.single(1, 5000, 1, jnp.float32)
    known = known._replace(variances=4 * known.variances)
    noise = 1e-4 * jax.random.normal(jax.random.key(0), (1, 5000))
    nothing = diagonal_mixtures.no_statistics(known)._replace(counts=jnp.ones((1, 1)))
    rule = {"least_weight": 0.0, "variance_floor": 0.0, "label_floor": 0.0}
    moved = diagonal_mixtures.maximize(known, nothing._replace(first=noise), **rule)
    np.testing.assert_allclose(np.std(moved.means), 1e-4 * np.sqrt(4 * 5000), rtol=0.05)
    moved = diagonal_mixtures.maximize(known, nothing._replace(second=noise), **rule)
    np.testing.assert_allclose(np.std(moved.variances), 4e-4 * np.sqrt(2 * 5000), rtol=0.05)


def test_predictions_stay_finite_far_from_all_components_and_for_unknown_labels():
    mixture = diagonal_mixtures.single(2, 5, 3, jnp.float32)
    mixture = mixture._replace(labels=mixture.labels.at[0].set(jnp.array([1.0, 0, 0])))
    logs = jax.jit(mixture.log_labels)(jnp.full((2, 5), 1e9))
    assert np.all(np.isfinite(logs))
    one = jnp.zeros((1, 5)), jnp.array([2]), jnp.ones(1)
    found, density = jax.jit(diagonal_mixtures.Statistics.of)(mixture, *one)
    assert all(np.all(np.isfinite(leaf)) for leaf in (*found, density))
