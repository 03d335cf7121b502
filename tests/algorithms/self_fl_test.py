"""Self-FL: the two-level normal model in closed form, its limits, and a plain loop."""

import json

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import plain_loops
import plain_rounds
import pytest
import quadratics
import trajectories
from plain_loops import ROUNDS, Round, World, rate_of, slope, vector
from quadratics import ETA, MEANS, START, near

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.algorithms.self_fl import SelfFLServer
from pfljax.ops import two_level


class Known:
    """The server's knowledge, with variances in place of precisions."""

    def __init__(self, start, clients):
        self.mean, self.between = start, 0.0
        self.models = np.tile(start, (clients, 1))
        self.variances = np.full(clients, np.inf)

    def start_of(self, m, rate, most):
        """The mean of the others, and the number of steps from there."""
        others = [j for j in np.flatnonzero(np.isfinite(self.variances)) if j != m]
        if not others:
            return self.mean, most
        w = 1 / (self.between + self.variances[others])
        prior, variance = w @ self.models[others] / w.sum(), self.between + 1 / w.sum()
        own = self.variances[m]
        if np.isinf(own):
            return prior, most
        wanted = np.log(own / (own + variance)) / np.log(1 - rate)
        return prior, int(np.clip(np.round(wanted), 1, most))

    def update(self, iterates, factor=1.0):
        """The round of the clients whose iterates, the start first, are given."""
        for m, path in iterates.items():
            self.models[m] = path[-1]
            self.variances[m] = np.mean(np.var(path, axis=0, ddof=1))
        seen = np.isfinite(self.variances)
        self.between = factor * np.mean(np.var(self.models[seen], axis=0, ddof=1))
        w = 1 / (self.between + self.variances[seen])
        self.mean = w @ self.models[seen] / w.sum()

    def precisions(self):
        return 1 / self.variances


@pytest.mark.parametrize("factor, curvature", [(1.0, 3.0), (0.0, 1.0)])
def test_closed_form(factor, curvature):
    most, rounds, taken = 9, 4, []
    local = quadratics.LOCAL._replace(epochs=most)
    known = Known(START.astype(float), 3)
    for _ in range(rounds):
        paths = {}
        for m in range(3):
            start, steps = known.start_of(m, curvature * ETA, most)
            kept = (1 - ETA) ** np.arange(steps + 1)[:, None]
            paths[m] = MEANS[m] + kept * (start - MEANS[m])
            taken.append(steps)
        known.update(paths, factor)
    assert most in taken and min(taken) < most
    outcome = quadratics.run(
        "self_fl", rounds, local=local, between_factor=factor, curvature=curvature
    )
    near(quadratics.vector(outcome.server.params), known.mean)
    near(quadratics.vector(outcome.clients), known.models)
    near(quadratics.vector(outcome.server.models), known.models)
    np.testing.assert_allclose(outcome.server.precisions, known.precisions(), rtol=1e-4)
    np.testing.assert_allclose(outcome.server.between, known.between, rtol=1e-4)
    np.testing.assert_allclose(outcome.metrics["steps"][-1], np.mean(taken[-3:]), rtol=1e-6)


def test_steps_lead_to_the_posterior_mean_and_variances_have_both_limits():
    draw = np.random.default_rng(0)
    estimates, variances = draw.normal(size=(6, 3)), draw.uniform(0.5, 2, 6)
    eta = 0.01  # so small that rounding the number of steps does not matter
    with jax.enable_x64(True):
        for between in (0.0, 0.7, 1e9):
            # The joint density of (theta_0, theta_1, ...), whose mean is that of the posterior.
            matrix = np.zeros((7, 7))
            matrix[1:, 1:] = np.diag(1 / variances)
            for m in range(6):
                gap = np.zeros(7)
                gap[[0, m + 1]] = 1, -1
                matrix += np.outer(gap, gap) / max(between, 1e-9)
            right = np.concatenate([np.zeros((1, 3)), estimates / variances[:, None]])
            exact = np.linalg.solve(matrix, right)
            weights = two_level.weights(1 / variances, jnp.float64(between))
            np.testing.assert_allclose(weights @ estimates / weights.sum(), exact[0], rtol=1e-5)
            for m in range(6):
                others = np.where(np.arange(6) == m, 0, weights)
                share = two_level.prior_share(others.sum(), 1 / variances[m], jnp.float64(between))
                prior = others @ estimates / others.sum()
                posterior = share * prior + (1 - share) * estimates[m]
                np.testing.assert_allclose(posterior, exact[m + 1], rtol=1e-5, atol=1e-6)
                count = int(two_level.steps(share, eta, 10**6))
                found = estimates[m] + (1 - eta) ** count * (prior - estimates[m])
                np.testing.assert_allclose(found, posterior, atol=0.02)
        near(exact[1:], estimates)  # of the last variance, which is infinite


def test_trajectory():
    theirs = trajectories.read_recent("SelfFL-gaussian.f64")
    settings = json.loads(str(theirs["meta"]))["hyperparameters"]
    estimates, precisions = theirs["estimate"], 1 / theirs["sigma2"]

    def tree_of(vectors):
        return {"body": {"w": vectors[..., :2]}, "head": {"w": vectors[..., 2:]}}

    def close(found, wanted):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-8)

    with jax.enable_x64(True):
        local = core.LocalTraining(
            optax.sgd(settings["eta"]), epochs=settings["l_cap"], learning_rate=settings["eta"]
        )
        method = ALGORITHMS["self_fl"](quadratics.quadratic(), local)
        ones = np.ones(5, int)
        data = federation.examples_of(estimates, 0 * ones, ones, num_classes=1)
        data = jax.tree.map(jnp.asarray, data)
        server = SelfFLServer(
            tree_of(jnp.asarray(theirs["theta0"])),
            tree_of(jnp.asarray(estimates)),
            jnp.asarray(precisions),
            jnp.float64(settings["sigma0_squared"]),
        )
        close(two_level.weights(server.precisions, server.between), theirs["w"])

        @jax.jit
        def client(m):
            context = core.Context(jax.random.key(0), jnp.int32(0), jnp.int32(1), m)
            received = method.download(server, context)
            return received, method.update_client(server, (), data.of_client(m), context)

        for m in range(5):
            received, output = client(jnp.int32(m))
            close(quadratics.flat(received.start), theirs["loo"][m])
            mean = received.share * theirs["loo"][m] + (1 - received.share) * estimates[m]
            close(mean, theirs["posterior"][m])
            assert output.metrics["steps"].value == theirs["steps_used"][m]
            close(quadratics.flat(output.state), theirs["after_gd"][m])
        # The file keeps the variances of the estimates, which are known in it.
        each = (tree_of(jnp.asarray(theirs["after_gd"])), jnp.asarray(precisions))
        cohort = core.Cohort(jnp.arange(5), jnp.ones(5, jnp.int32), 5)
        context = core.Context(jax.random.key(0), jnp.int32(0), jnp.int32(1))
        after = method.server_update(server, core.Uploads((), each), cohort, context)
        close(after.between, theirs["sigma0_squared_next"])
        close(quadratics.flat(after.params), theirs["theta0_next"])


def test_the_first_round_is_local_training_and_a_large_variance_takes_all_steps():
    first = identities.run("self_fl", rounds=1)
    alone = identities.run("local", rounds=1)
    federation.assert_close(first.clients, alone.clients)
    free, tied = (identities.run("self_fl", between_factor=factor) for factor in (1e6, 0.0))
    sizes = federation.SIZES[:8]
    assert np.all(free.metrics["steps"] >= 2) and np.any(tied.metrics["steps"] < 2 * sizes.min())
    assert np.all(free.metrics["steps"][1:] > tied.metrics["steps"][1:])
    assert federation.differ(free.clients, tied.clients)
    assert tied.server.between == 0 < free.server.between


def test_batch_norm():
    def numbers(model):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(plain.parameters(model))])

    def rows(models):
        return [jax.tree.map(lambda leaf, k=k: leaf[k], models) for k in range(8)]

    def one_round(server, clients, ids, found):
        old, variances = rows(server.models), 1 / server.precisions
        new, between = list(old), float(server.between)
        for k in ids:
            x, y = plain.examples(k)
            others = [j for j in range(8) if j != k and np.isfinite(variances[j])]
            start, most = server.params, plain.EPOCHS * -(-len(y) // plain.BATCH)
            steps = most
            if others:
                w = 1 / (between + variances[others])
                start = plain.average([old[j] for j in others], w)
                if np.isfinite(variances[k]):
                    own, prior = variances[k], between + 1 / w.sum()
                    wanted = np.log(own / (own + prior)) / np.log(1 - plain.RATE)
                    steps = int(np.clip(np.round(wanted), 1, most))
            model, path = start, [numbers(start)]
            batches = [batch for _ in range(plain.EPOCHS) for batch in plain.batches(x, y)]
            for u, v in batches[:steps]:
                model = plain.step(model, plain.gradient(plain.loss)(model, u, v), u)
                path.append(numbers(model))
            new[k] = clients[k] = jax.tree.map(np.asarray, model)
            server.precisions[k] = 1 / np.mean(np.var(path, axis=0, ddof=1))
        variances = 1 / server.precisions
        seen = np.flatnonzero(np.isfinite(variances))
        between = np.mean(np.var([numbers(new[k]) for k in seen], axis=0, ddof=1))
        return server._replace(
            params=plain.average([new[k] for k in seen], 1 / (between + variances[seen])),
            models=jax.tree.map(lambda *leaf: np.stack(leaf), *new),
            between=between,
        )

    with np.errstate(divide="ignore"):
        batch_norm.check("self_fl", one_round, rounds=3)


def test_plain_loop():
    def loop(world: World):
        known, own, fewer = Known(world.params, 4), {}, 0
        for r, cohort in enumerate(world.cohorts):
            paths = {}
            for k in cohort:
                batches = list(world.batches(k))
                start, steps = known.start_of(k, rate_of(r), len(batches))
                fewer += steps < len(batches)
                paths[k] = [start]
                for x, y in batches[:steps]:
                    paths[k].append(paths[k][-1] - rate_of(r) * slope(paths[k][-1], x, y))
                own[k] = paths[k][-1]
            known.update(paths)
            assert r < ROUNDS - 1 or fewer, "every client took all steps"
            server = vector(
                known.mean, plain_loops.by_array(known.models), known.precisions(), known.between
            )
            yield Round(server, dict(own), dict(own))

    plain_rounds.check("self_fl", loop, {})
