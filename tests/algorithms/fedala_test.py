"""FedALA: the global model enters the personalized one by learned weights."""

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import quadratics
from quadratics import (
    ENDS,
    MEANS,
    POINTS,
    SHARE,
    SIZES,
    START,
    near,
    personal_gaps,
    steps_towards,
    vector,
)


@pytest.mark.parametrize("layers", [1, 2])
def test_closed_form(layers):
    eta, most, upper = 2.0, 14, slice(4 - 2 * layers, 4)
    w, theta, weights = START, np.zeros((3, 4)), np.ones((3, 4))
    spread = [
        np.mean((POINTS[e - n : e] - m) ** 2, axis=0)
        for e, n, m in zip(ENDS, SIZES, MEANS, strict=True)
    ]

    def mix(k, passes):
        """The mixture of client `k`; one full batch is a pass over all examples."""
        losses = []
        gap = w[upper] - theta[k, upper]
        mixed = w.copy()
        mixed[upper] = theta[k, upper] + weights[k, upper] * gap
        while len(losses) < passes:
            losses.append(0.5 * np.sum((mixed - MEANS[k]) ** 2 + spread[k]))
            slope = (mixed - MEANS[k])[upper] * gap
            weights[k, upper] = np.clip(weights[k, upper] - eta * slope, 0, 1)
            mixed[upper] = theta[k, upper] + weights[k, upper] * gap
            if len(losses) > 10 and np.std(losses[-10:]) < settled:
                break
        return mixed, len(losses)

    settled, counts = 0.02, []
    for round in range(3):
        passes = 0 if round == 0 else most if round == 1 else 1
        mixed, count = zip(*(mix(k, passes) for k in range(3)), strict=True)
        counts.append(count)
        theta = steps_towards(np.stack(mixed), MEANS)
        w = SHARE @ theta
    assert counts[1] != (11, 11, 11) and counts[1] != (most,) * 3, "nothing of interest happens"
    outcome = quadratics.run(
        "fedala", 3, eta=eta, share=1.0, layers=layers, first_passes=most, settled=settled
    )
    near(vector(outcome.server.params), w)
    near(vector(outcome.clients.params), theta)
    learned = (
        vector(outcome.clients.weights) if layers == 2 else outcome.clients.weights["head"]["w"]
    )
    near(learned, weights[:, upper])
    deployed = [mix(k, 1)[0] for k in range(3)]
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(deployed))


@pytest.mark.parametrize("special", [{"eta": 0.0}, {"layers": 0}])
def test_without_learned_weights_is_fedavg(special):
    average, adaptive = identities.run("fedavg"), identities.run("fedala", **special)
    federation.assert_close(adaptive.server, average.server)
    federation.assert_close(adaptive.scores["personal"], average.scores["global"], 1e-5)
    other = identities.run("fedala")
    assert federation.differ(other.server, average.server)
    assert federation.differ(other.scores["personal"], other.scores["global"])


@pytest.mark.slow
def test_every_setting_counts():
    usual = identities.run("fedala").server
    for change in ({"layers": 2}, {"share": 0.4}, {"first_passes": 3}, {"settled": 1e-6}):
        assert federation.differ(identities.run("fedala", **change).server, usual, least=1e-6)


def test_the_first_phase_begins_where_the_models_differ():
    first = identities.run("fedala", rounds=1).clients
    assert not np.any(first.started)  # all are at the common start
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(first.weights))
    assert np.any(identities.run("fedala", rounds=2).clients.started)


def test_batch_norm():
    def upper(model):
        return {"body": {plain.NORM: model["body"][plain.NORM]}, "head": model["head"]}

    def mixture(weights, w, own, common):
        mixed = jax.tree.map(lambda v, c, s: v + s * (c - v), own, common, weights)
        body = {"Dense_0": w["body"]["Dense_0"], **mixed["body"]}
        return {"body": body, "head": mixed["head"]}

    def mixed_loss(weights, x, y, *models_of):
        return plain.loss(mixture(weights, *models_of), x, y)

    def aggregate(server, client, x, y):
        w, weights = server.params, client.weights
        own, common = upper(client.params), upper(w)

        gap = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), own, common)
        apart = max(jax.tree.leaves(gap)) > 0
        if apart:
            for u, v in plain.batches(x, y):
                slope = plain.gradient(mixed_loss)(weights, u, v, w, own, common)
                weights = jax.tree.map(lambda s, g: jnp.clip(s - g, 0, 1), weights, slope)
        for name in ("mean", "var"):  # statistics have no gradient, so they are the common ones
            assert np.all(weights["body"][plain.NORM][name] == 1)
        return mixture(weights, w, own, common), weights, client.started | apart

    def one_round(server, clients, ids, found):
        trained = []
        for k in ids:
            x, y = plain.examples(k)
            start, weights, started = aggregate(server, clients[k], x, y)
            model = plain.train(start, x, y)
            clients[k] = clients[k]._replace(
                params=model, weights=weights, started=np.asarray(started)
            )
            trained.append(model)
        return batch_norm.fed_average(server, trained, ids)

    settings = {"layers": 2, "share": 1.0, "first_passes": 1}
    batch_norm.check("fedala", one_round, personal=lambda *args: aggregate(*args)[0], **settings)
