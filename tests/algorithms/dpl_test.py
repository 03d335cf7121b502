"""DPL: the global model, corrected by a client's differences, and FedAvg without these."""

import batch_norm
import federation
import identities
import jax.numpy as jnp
import numpy as np
import plain
import plain_loops
import plain_rounds
import quadratics
from quadratics import ENDS, LABELED, LABELS, POINTS, SIZES, near, softmax

from pfljax.algorithms import ALGORITHMS
from pfljax.algorithms.dpl import Memory


def memory_of(z, labels, logits, items, capacity):
    """The memory of a client in NumPy, filled up with zeros."""
    differences = np.eye(logits.shape[1])[labels] - softmax(logits)
    order = np.argsort(-(differences**2).sum(axis=1), kind="stable")[:items]
    empty = ((0, capacity - len(order)), (0, 0))
    rows = np.pad(z[order], empty), np.pad(differences[order], empty)
    return Memory(*rows, np.arange(capacity) < len(order))


def corrections(memory, z, scale, prior):
    """The corrections of some examples, in loops."""
    found = []
    for x in z:
        cosines = [
            x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in memory.features[memory.mask]
        ]
        weights = np.exp((np.array(cosines) - 1) / scale)
        found.append(weights @ memory.differences[memory.mask] / (prior + weights.sum()))
    return np.stack(found)


def test_closed_form():
    items, lam, scale, prior, task = 3, 1.5, 0.4, 0.7, quadratics.linear_classifier()
    task = task._replace(
        metrics=lambda outputs, batch: {"squares": jnp.sum(outputs**2 * batch.mask[:, None])}
    )
    method = ALGORITHMS["dpl"](
        task, quadratics.LOCAL, items=items, lam=lam, scale=scale, prior=prior
    )
    outcome = federation.run(
        method, data=LABELED, plan=quadratics.PLAN, rounds=2, score=task, devices=2
    )
    average = ALGORITHMS["fedavg"](task, quadratics.LOCAL)
    w = federation.run(average, data=LABELED, plan=quadratics.PLAN, rounds=2).server.params
    federation.assert_close(outcome.server.params, w)
    sums = []
    for end, size in zip(ENDS, SIZES, strict=True):
        rows = slice(end - size, end)
        z = POINTS[rows] @ w["body"]["w"]
        logits = z @ w["head"]["kernel"]
        memory = memory_of(z, LABELS[rows], logits, items, items)
        outputs = logits + lam * corrections(memory, z, scale, prior)
        sums.append(np.sum(outputs**2))
    near(outcome.scores["personal"]["test"]["squares"], sums)


def test_without_a_memory_is_fedavg():
    average = identities.run("fedavg")
    for options in ({"lam": 0.0}, {"items": 0}):
        empty = identities.run("dpl", **options)
        federation.assert_close(empty.scores["personal"], average.scores["personal"], 1e-5)
    corrected = identities.run("dpl")
    federation.assert_close(corrected.server.params, average.server.params)
    losses = [run.scores["personal"]["test"]["loss"] for run in (corrected, average)]
    assert federation.differ(*losses, least=0.05)
    federation.assert_close(corrected.scores["global"], average.scores["global"], 1e-5)


def test_private_heads_without_a_memory_are_fedper():
    average = identities.run("fedper")
    empty, corrected = (identities.run("dpl", lam=lam, private_head=True) for lam in (0.0, 2.0))
    federation.assert_close(corrected.clients, average.clients)
    federation.assert_close(empty.scores["personal"], average.scores["personal"], 1e-5)
    losses = [run.scores["personal"]["test"]["loss"] for run in (corrected, average)]
    assert federation.differ(*losses, least=0.05)


def test_batch_norm():
    def personal(server, client, x, y):
        z = np.asarray(plain.features(server.params, x, False))
        logits = np.asarray(plain.head(server.params, z))
        return {"model": server.params, "memory": memory_of(z, y, logits, 4, 4)}

    batch_norm.check("dpl", batch_norm.averaged(plain.train), personal=personal, items=4)


def test_plain_loop():
    def loop(world):
        for round in plain_loops.fedavg(world):
            deployed = {}
            for k, (x, y) in enumerate(zip(world.x, world.y, strict=True)):
                z = np.asarray(plain_loops.features(round.server, x))
                logits = np.asarray(plain_loops.head(round.server, z))
                deployed[k] = plain_loops.vector(*memory_of(z, y, logits, 3, 3), round.server)
            yield round._replace(deployed=deployed)

    plain_rounds.check("dpl", loop, {"items": 3})
