"""FedMD: private models that learn each other's outputs on public examples."""

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
from plain_loops import BATCH, Round, World, rate_of, slope, vector
from quadratics import ETA, MEANS, START, near, steps_towards

from pfljax import core
from pfljax.core import streams


def public(inputs, labels):
    size = np.int32(len(labels))
    return core.ClientData(inputs, labels, np.int32(0), size, None, max_size=len(labels))


def test_closed_form():
    # The logits are x - theta, so that the gap to the mean is the same for each public example.
    x = np.random.default_rng(9).normal(size=(6, 4)).astype(np.float32)
    theta = np.tile(steps_towards(START, x.mean(axis=0), steps=2), (3, 1))
    for number in range(3):
        if number:
            mean = theta.mean(axis=0)
            for _ in range(2):
                theta = theta - ETA / 4 * np.sign(theta - mean)
        theta = steps_towards(theta, MEANS)
    outcome = quadratics.run(
        "fedmd",
        3,
        public_epochs=2,
        digest_epochs=2,
        server_data=public(x, np.zeros(6, np.int32)),
    )
    near(quadratics.vector(outcome.clients), theta)
    scored = x[outcome.server.rows] - theta.mean(axis=0)
    near(outcome.server.scores, scored)


def test_without_public_examples_is_local_training_and_with_them_not():
    alone = identities.run("fedmd", public_epochs=0, digest_epochs=0, join="initial")
    federation.assert_close(alone.clients, identities.run("local").clients)
    for settings in ({"public_epochs": 0, "digest_epochs": 1}, {"public_epochs": 1}):
        other = identities.run("fedmd", **{"digest_epochs": 0, **settings}, join="initial")
        assert federation.differ(other.clients, alone.clients)


def test_some_examples_are_scored_and_others_in_the_next_round():
    algorithm = federation.make("fedmd", scored_examples=4, public_epochs=0)
    server = algorithm.init_server(None, jax.random.key(0))
    upload = core.weighted(jnp.ones((4, 3)), 2.0)
    context = core.Context(jax.random.key(1), jnp.int32(0), jnp.int32(1))
    after = algorithm.server_update(server, core.Uploads(upload, ()), None, context)
    np.testing.assert_array_equal(after.rows, server.next_rows)
    np.testing.assert_array_equal(after.scores, np.ones((4, 3)))
    for rows in (server.next_rows, after.next_rows):
        assert len(set(rows.tolist())) == 4 and max(rows) < 10
    assert set(after.next_rows.tolist()) != set(server.next_rows.tolist())
    assert not server.has_scores and after.has_scores


def test_batch_norm():
    held = federation.server_data()
    x = held.inputs.astype(np.float64)

    def gap(model, x, scores):
        return jnp.mean(jnp.abs(plain.logits(model, x, True) - scores))

    @jax.jit
    def digest(model, x, scores):
        """One step, on all public examples."""
        return plain.step(model, jax.grad(gap)(model, x, scores), x)

    def one_round(server, clients, ids, found):
        scores = []
        for k in ids:
            if server.has_scores:
                clients[k] = digest(clients[k], x[server.rows], server.scores)
            clients[k] = plain.train(clients[k], *plain.examples(k))
            scores.append(plain.logits(clients[k], x[server.next_rows], False))
        key = streams.key_of(jax.random.key(0), streams.SERVER, int(server.has_scores))
        return server._replace(
            scores=np.mean(scores, axis=0),
            rows=server.next_rows,
            next_rows=np.asarray(held.shuffled(key).order),
            has_scores=np.array(True),
        )

    batch_norm.check("fedmd", one_round, server_data=public(x, held.targets), public_epochs=2)


def test_plain_loop():
    draw = np.random.default_rng(9)
    x, y = draw.normal(size=(6, plain_loops.INPUTS)), draw.integers(0, 3, 6).astype(np.int32)

    @jax.jit
    def logits(w, x):
        return plain_loops.head(w, plain_loops.features(w, x))

    @jax.jit
    @jax.grad
    def slope_of_gap(w, x, scores):
        return jnp.mean(jnp.abs(logits(w, x) - scores))

    def loop(world: World):
        first, own, scores = world.params, {}, None
        for _ in range(2):
            for batch in (slice(0, BATCH), slice(BATCH, 6)):
                first = first - rate_of(0) * slope(first, x[batch], y[batch])
        for r, cohort in enumerate(world.cohorts):
            for k in cohort:
                w = own.get(k, first)
                for _ in range(2 if r else 0):
                    w = w - rate_of(r) * np.asarray(slope_of_gap(w, x, scores))
                own[k] = world.train(k, w, rate_of(r))
            scores = np.mean([logits(own[k], x) for k in cohort], axis=0)
            yield Round(vector(first, scores), dict(own), dict(own))

    def view(server):
        return server.initial_params, server.scores[np.argsort(server.rows)]

    settings = {"public_epochs": 2, "digest_epochs": 2, "digest_batch": 6}
    plain_rounds.check("fedmd", loop, {**settings, "server_data": public(x, y)}, view)
