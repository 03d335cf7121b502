"""FedGC: private heads, whose rows the server separates from classes that their client lacks."""

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
from plain_loops import BODY, CLASSES, FEATURES, HEAD, Round, mean, rate_of, vector
from quadratics import ENDS, ETA, LABELS, POINTS, SHARE, SIZES, STEPS, near, softmax

from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling


def embeddings_of(rows, present):
    """`[C, d]` and `[C]`, the mean embedding of each class, and how many clients have it."""
    counts = present.sum(axis=0)
    total = (rows * present[..., None]).sum(axis=0)
    return total / np.maximum(counts, 1)[:, None], counts


def corrections(rows, present):
    """`[K, C, d]`, the gradient of the regularizer at the clients' rows `[K, C, d]`."""
    embeddings, counts = embeddings_of(rows, present)
    slopes = np.zeros_like(rows)
    for c, e in enumerate(embeddings):
        powers = np.exp(rows @ e) * present * ~present[:, c : c + 1]  # [K, C], of those without c
        shares = powers / (np.exp(e @ e) + powers.sum())
        slopes += counts[c] * shares[..., None] * e
    return slopes


def test_closed_form():
    rate, task = 0.7, quadratics.linear_classifier()
    model = jax.tree.map(np.asarray, task.init(None))
    w, heads = model["body"]["w"], [model["head"]["kernel"]] * 3
    own = [(POINTS[e - n : e], LABELS[e - n : e]) for e, n in zip(ENDS, SIZES, strict=True)]
    present = np.stack([np.bincount(y, minlength=4) > 0 for _, y in own])
    for _ in range(2):
        bodies = []
        for k, (x, y) in enumerate(own):
            body, kernel = w, heads[k]
            for _ in range(STEPS):
                z = x @ body
                shares = np.zeros((len(y), 4))
                shares[:, present[k]] = softmax((z @ kernel)[:, present[k]])
                errors = (shares - np.eye(4)[y]) / len(y)
                body, kernel = body - ETA * x.T @ errors @ kernel.T, kernel - ETA * z.T @ errors
            bodies.append(body)
            heads[k] = kernel
        w = np.tensordot(SHARE, np.stack(bodies), 1)
        rows = np.stack([kernel.T for kernel in heads])
        embeddings, _ = embeddings_of(rows, present)
        corrected = rows - rate * corrections(rows, present)
        assert [np.any(a != b) for a, b in zip(rows, corrected, strict=True)] == [True, True, False]
        heads = [kernel.T for kernel in corrected]
    outcome = federation.run(
        ALGORITHMS["fedgc"](task, quadratics.LOCAL, correction_rate=rate),
        data=quadratics.LABELED,
        plan=quadratics.PLAN,
        rounds=2,
        score=task,
        devices=2,
    )
    near(outcome.server.shared.average.params["body"]["w"], w)
    near(outcome.server.embeddings, embeddings)
    near(outcome.clients["head"]["kernel"], np.stack(heads))
    for k, (x, _) in enumerate(own):
        scores = x @ w @ heads[k]
        least = np.where(present[k], scores, np.inf).min(axis=1, keepdims=True)
        scores = np.where(present[k], scores, least - 1)
        near(outcome.scores["personal"]["test"]["loss"][k], scores.sum())


def test_where_clients_have_all_classes_it_is_fedper():
    options = {"plan": sampling.CohortPlan(num_clients=5, size=5), "data": identities.balanced()}
    separate = identities.run("fedper", **options)
    corrected = identities.run("fedgc", correction_rate=1.0, **options)
    federation.assert_close(corrected.server.shared, separate.server)
    federation.assert_close(corrected.clients, separate.clients)
    federation.assert_close(corrected.scores["personal"], separate.scores["personal"])


def test_the_correction_counts_where_clients_lack_classes():
    at_rest, corrected = (identities.run("fedgc", correction_rate=r) for r in (0.0, 1.0))
    assert federation.differ(corrected.clients, at_rest.clients)


def restricted(logits, y, present):
    """The cross-entropy over some classes, written with exponentials."""
    powers = jnp.exp(logits) * present
    return -jnp.mean(jnp.log(powers[jnp.arange(len(y)), y] / jnp.sum(powers, axis=1)))


def normalizers_of(rows, present):
    """`[C]`, the logarithms of the denominators."""
    embeddings, _ = embeddings_of(rows, present)
    return [
        np.log(np.exp(e @ e) + np.sum(np.exp(rows @ e) * present * ~present[:, c : c + 1]))
        for c, e in enumerate(embeddings)
    ]


def test_batch_norm():
    rate = 0.7

    def objective(model, x, y, present):
        return restricted(plain.logits(model, x, True), y, present)

    def one_round(server, clients, ids, found):
        present = np.stack([plain.classes(plain.examples(k)[1]) > 0 for k in ids])
        average, bodies, heads = server.shared.average, [], []
        for k, own in zip(ids, present, strict=True):
            start = {**average.params, **clients[k]}
            trained = plain.train(start, *plain.examples(k), objective, own)
            bodies.append({"body": trained["body"]})
            heads.append(trained["head"])
        rows = np.stack([head["kernel"].T for head in heads])
        embeddings, counts = embeddings_of(rows, present)
        corrected = rows - rate * corrections(rows, present)
        for k, head, kernel in zip(ids, heads, corrected, strict=True):
            clients[k] = {"head": {**head, "kernel": kernel.T}}
        average = batch_norm.fed_average(average, bodies, ids)
        return server._replace(
            shared=server.shared._replace(average=average),
            embeddings=embeddings,
            counts=counts.astype(float),
            normalizers=np.array(normalizers_of(rows, present)),
        )

    batch_norm.check("fedgc", one_round, correction_rate=rate)


def test_plain_loop():
    rate = 0.7

    @jax.jit
    @jax.grad
    def slope(theta, x, y, present):
        logits = plain_loops.head(theta, plain_loops.features(theta, x))
        return restricted(logits, y, present)

    def loop(world):
        classes = np.stack([np.bincount(y, minlength=CLASSES) > 0 for y in world.y])
        body, heads = world.params[BODY], {}
        for r, cohort in enumerate(world.cohorts):
            models = {}
            for k in cohort:
                start = vector(body, heads.get(k, world.params[HEAD]))

                def gradient(theta, x, y, present=classes[k]):
                    return slope(theta, x, y, present)

                models[k] = world.train(k, start, rate_of(r), gradient=gradient)
            body = mean(models)[BODY]
            rows = [m[HEAD][CLASSES:].reshape(FEATURES, CLASSES).T for m in models.values()]
            rows, present = np.stack(rows), classes[cohort]
            moved = rows - rate * plain_loops.DECAY**r * corrections(rows, present)
            for k, kernel in zip(cohort, moved, strict=True):
                heads[k] = vector(models[k][HEAD][:CLASSES], kernel.T)
            embeddings, counts = embeddings_of(rows, present)
            shared = (body, world.params[HEAD], embeddings, counts)
            deployed = {k: vector(body, own, classes[k]) for k, own in heads.items()}
            server = vector(*shared, normalizers_of(rows, present))
            yield Round(server, dict(heads), deployed)

    plain_rounds.check("fedgc", loop, {"correction_rate": rate})
