"""Mime: steps corrected by the cohort's gradient, and MimeLite where that changes nothing."""

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
from quadratics import ETA, MEANS, START, STEPS, near, vector

from pfljax import aggregation
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import init
from pfljax.engine.accounting import traffic
from pfljax.errors import UserError


def test_closed_form():
    # On quadratics the correction g(theta) - g(w) + c is theta - w + c, the same for all clients.
    beta, w, m = 0.6, START, np.zeros(4)
    for _ in range(3):
        c, theta = (w - MEANS).mean(axis=0), w
        for _ in range(STEPS):
            theta = theta - ETA * (beta * m + (1 - beta) * (theta - w + c))
        m, w = beta * m + (1 - beta) * c, theta
    outcome = quadratics.run("mime", 3, beta=beta)
    near(vector(outcome.server.average.params), w)
    near(vector(outcome.server.momentum), m)


def test_is_mimelite_where_all_clients_have_the_same_batch():
    # Copies of one client with one batch: its gradient is that of the cohort.
    draw = np.random.default_rng(4)
    inputs = np.tile(draw.normal(size=(4, federation.NUM_FEATURES)).astype(np.float32), (8, 1))
    targets = np.tile(np.array([0, 1, 2, 1], np.int32), 8)
    data = federation.examples_of(inputs, targets, np.full(8, 4), num_classes=3)
    task, local = federation.task(), federation.local_training(shuffle=False)
    lite, full = (
        federation.run(ALGORITHMS[name](task, local), data=data) for name in ("mimelite", "mime")
    )
    federation.assert_close(full.server, lite.server)
    assert federation.differ(identities.run("mime").server, identities.run("mimelite").server)


def test_the_first_exchange_is_counted():
    data, key = jax.tree.map(jnp.asarray, federation.examples()), jax.random.key(0)
    counts = []
    for name in ("mimelite", "mime"):
        algorithm = federation.make(name)
        server = init.init_server(algorithm, data.population(), key)
        counts.append(traffic.count(algorithm, server, (), data))
    model = 4 * sum(leaf.size for leaf in jax.tree.leaves(server.momentum))
    assert counts[1].upload - counts[0].upload == 4  # the weight of the other message
    assert counts[1].download - counts[0].download == model + 4


def test_aggregators_are_refused():
    with pytest.raises(UserError, match="choose another method"):
        aggregation.apply(federation.make("mime"), aggregation.AGGREGATORS["quantize"]())


def whole_gradient(w, x, y):
    """The gradient on all examples, batch by batch."""
    slopes = [plain.gradient(plain.loss)(w, u, v) for u, v in plain.batches(x, y)]
    slope = plain.average(slopes, [len(v) for _, v in plain.batches(x, y)])
    return plain.with_statistics(slope, jax.tree.map(np.zeros_like, plain.statistics(w)))


def test_batch_norm():
    beta = 0.6

    def one_round(server, clients, ids, found):
        w, m, uniform = server.average.params, server.momentum, np.ones(len(ids)).tolist()
        c = plain.average([whole_gradient(w, *plain.examples(k)) for k in ids], uniform)
        trained, slope = [], plain.gradient(plain.loss)
        for k in ids:
            theta = w
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(*plain.examples(k)):
                    parts = (m, slope(theta, u, v), slope(w, u, v), c)
                    rest = 1 - beta
                    theta = plain.step(theta, plain.combine((beta, rest, -rest, rest), parts), u)
            trained.append(theta)
        average = batch_norm.fed_average(server.average, trained, ids, uniform)
        return server._replace(average=average, momentum=plain.combine((beta, 1 - beta), (m, c)))

    batch_norm.check("mime", one_round, beta=beta)


def test_plain_loop():
    beta = 0.7

    def loop(world):
        w, m = world.params, np.zeros_like(world.params)
        for r, cohort in enumerate(world.cohorts):
            c = np.mean([plain_loops.slope(w, world.x[k], world.y[k]) for k in cohort], axis=0)

            def gradient(theta, x, y, w=w, m=m, c=c):
                corrected = plain_loops.slope(theta, x, y) - plain_loops.slope(w, x, y) + c
                return beta * m + (1 - beta) * corrected

            rate = plain_loops.rate_of(r)
            models = {k: world.train(k, w, rate, gradient=gradient) for k in cohort}
            m = beta * m + (1 - beta) * c
            w = plain_loops.mean(models, by_size=False)
            yield plain_loops.Round(plain_loops.vector(w, m), {})

    plain_rounds.check("mime", loop, {"beta": beta})
