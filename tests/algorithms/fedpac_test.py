"""FedPAC: prototypes that align features, and heads combined by a quadratic program."""

import batch_norm
import federation
import identities
import jax.numpy as jnp
import numpy as np
import optax
import plain
import quadratics
from quadratics import ETA, POINTS, STEPS, near, steps_towards

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling
from pfljax.ops import simplex


def personal_means() -> core.Task:
    """Linear features, and a head whose first row goes to the mean of the client's inputs."""

    def losses(model, batch, key, train=True):
        return 0.5 * jnp.sum((model["head"]["kernel"][0] - batch.inputs) ** 2, axis=-1)

    def loss(model, batch, key, train=True):
        gaps = losses(model, batch, key)
        return jnp.sum(gaps * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1)

    return quadratics.linear_features()._replace(losses=losses, loss=loss)


def test_closed_form():
    # Two clients: a_1^2 V_1 + a_2^2 (V_2 + ||H_1 - H_2||^2) is least at weights inverse to these.
    labels, lam, sizes = np.array([0, 0, 1, 1, 0, 1, 2, 1, 1, 2]).astype(np.int32), 0.7, [4, 6]
    task, points = personal_means(), [POINTS[:4], POINTS[4:10]]
    own = [(points[0], labels[:4]), (points[1], labels[4:])]
    body = np.asarray(task.init(None)["body"]["w"], np.float64)
    heads, prototypes, seen = np.ones((2, 4)), np.zeros((4, 2)), np.zeros(4, bool)
    for _ in range(3):
        bodies, sums, counts, shares, variances = [], np.zeros((4, 2)), np.zeros(4), [], []
        for k, (x, y) in enumerate(own):
            z, members = x @ body, np.eye(4)[y]
            shares.append(members.T @ z / len(y))
            variances.append(((z**2).sum() / len(y) - (shares[k] ** 2).sum()) / len(y))
            heads[k] = steps_towards(heads[k], x.mean(axis=0), steps=2)
            w = body
            for _ in range(STEPS):
                gap = (x @ w - prototypes[y]) * seen[y][:, None]
                w = w - ETA * lam * 2 / gap.size * x.T @ gap
            bodies.append(w)
            sums, counts = sums + members.T @ (x @ w), counts + members.sum(axis=0)
        body = (4 * bodies[0] + 6 * bodies[1]) / 10
        seen = counts > 0
        prototypes[seen] = sums[seen] / counts[seen][:, None]
        others = variances[::-1] + ((shares[0] - shares[1]) ** 2).sum()
        from_other = variances / (variances + others)
        heads = heads + from_other[:, None] * (heads[::-1] - heads)
    local = core.LocalTraining(optax.sgd(ETA), batch_size=8, epochs=STEPS)
    outcome = federation.run(
        ALGORITHMS["fedpac"](task, local, lam=lam, head_epochs=2),
        data=federation.examples_of(POINTS[:10], labels, np.array(sizes), num_classes=4),
        plan=sampling.CohortPlan(num_clients=2, size=2),
        rounds=3,
        score=task,
        devices=2,
    )
    near(outcome.server.average.params["body"]["w"], body)
    near(outcome.server.prototypes.means, prototypes)
    near(outcome.clients["head"]["kernel"][:, 0], heads)
    assert np.all((0.01 < from_other) & (from_other < 0.5)), "the test mixes nothing"


REP_AND_PAC = (("fedrep", {}), ("fedpac", {"lam": 0.0}))


def test_without_pull_begins_as_fedrep_and_with_one_client_remains_it():
    rep, pac = (identities.run(name, rounds=1, head_epochs=1, **kw) for name, kw in REP_AND_PAC)
    federation.assert_close(pac.server.average, rep.server.average)
    assert federation.differ(pac.clients, rep.clients)  # these are mixed already
    alone = sampling.CohortPlan(num_clients=8, size=1)
    rep, pac = (identities.run(name, plan=alone, head_epochs=1, **kw) for name, kw in REP_AND_PAC)
    federation.assert_close(pac.server.average, rep.server.average)
    federation.assert_close(pac.clients, rep.clients)
    pulled = identities.run("fedpac", plan=alone, head_epochs=1, lam=1.0)
    assert federation.differ(pulled.server.average, rep.server.average)


def test_batch_norm():
    lam = 2.0

    def one_round(server, clients, ids, found):
        known, body = server.prototypes, server.average.params
        total, counts, offers, bodies = 0, 0, [], []
        for k in ids:
            x, y = plain.examples(k)
            start = {**body, **clients[k]}
            z = plain.features(start, x, False)  # judged, not trained: evaluation mode
            shares = plain.class_sums(z, y) / len(y)
            spread = jnp.mean(jnp.sum(z**2, axis=1)) - jnp.sum(shares**2)
            trained = batch_norm.head_then_body(start, x, y, batch_norm.aligned, known, lam)
            total += plain.class_sums(plain.features(trained, x, False), y)
            counts += plain.classes(y)
            offers.append(({"head": trained["head"]}, shares, jnp.maximum(spread, 0) / len(y)))
            bodies.append({"body": trained["body"]})
        heads, shares, variances = zip(*offers, strict=True)
        for number_of, k in enumerate(ids):
            gaps = jnp.stack([jnp.ravel(shares[number_of] - other) for other in shares])
            matrix = gaps @ gaps.T + jnp.diag(jnp.stack(variances))
            weights = simplex.minimize(matrix, jnp.ones(len(ids), bool))
            clients[k] = plain.combine(list(weights), heads)
        return server._replace(
            average=batch_norm.fed_average(server.average, bodies, ids),
            prototypes=batch_norm.prototypes_of(total, counts, known),
        )

    batch_norm.check("fedpac", one_round, lam=lam)
