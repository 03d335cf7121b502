"""FedSelect: personalized entries, their growth, and the turns in which they are trained."""

import batch_norm
import federation
import identities
import jax
import numpy as np
import plain
import plain_loops
import plain_rounds
import pytest
import quadratics
from plain_loops import Round, rate_of, slope
from quadratics import MEANS, START, near, personal_gaps, steps_towards, vector

from pfljax.algorithms import ALGORITHMS


@pytest.mark.parametrize("target, personalized", [(1.0, [1, 2]), (0.4, [1, 1])])
def test_closed_form(target, personalized):
    # The first two entries may be personalized, one of them at the first growth, after two rounds.
    w, theta, personal = START, np.tile(START, (3, 1)), np.zeros((3, 4), bool)
    before, counts = theta, []
    for round in range(4):
        start = np.where(personal, theta, w)
        if round > 1:
            change = np.where(personal, 0, np.abs(theta - before))[:, :2]
            if personal[:, :2].mean() <= target:
                personal = personal.copy()
                personal[np.arange(3), change.argmax(axis=1)] = True
            before = theta
            counts.append(int(personal.sum()) // 3)
        theta = steps_towards(start, MEANS)
        common = (~personal).sum(axis=0)
        mean = (theta * ~personal).sum(axis=0) / np.maximum(common, 1)
        w = np.where(common > 0, mean, w)
    assert counts == personalized
    outcome = quadratics.run("fedselect", 4, growth=0.5, target=target, every=1)
    near(vector(outcome.server.params), w)
    near(vector(outcome.clients.params), theta)
    near(vector(outcome.clients.before), before)
    np.testing.assert_array_equal(vector(outcome.clients.personal), personal)
    deployed = np.where(personal, theta, w)
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(deployed))


def test_without_growth_is_fedavg():
    selective = identities.run("fedselect", growth=0.0, every=1, weight_by_size=True)
    average = identities.run("fedavg")
    federation.assert_close(selective.server.params, average.server.params)
    federation.assert_close(selective.scores["personal"], average.scores["global"])
    grown = identities.run("fedselect", growth=0.5, every=1, weight_by_size=True)
    assert federation.differ(grown.server.params, average.server.params)
    later = identities.run("fedselect", growth=0.5, every=3, weight_by_size=True)
    federation.assert_close(later.server.params, average.server.params)


def test_a_client_may_deploy_what_it_trained():
    joined, trained = (
        identities.run("fedselect", growth=0.5, every=1, join="initial", deploy_trained=choice)
        for choice in (False, True)
    )
    federation.assert_close(joined.clients.params, trained.clients.params)
    assert federation.differ(joined.scores["personal"], trained.scores["personal"])


def selectable(model):
    """The masks of what may be personalized in `mlp_bn`: the kernels."""
    return jax.tree.map_with_path(
        lambda path, leaf: np.full(leaf.shape, path[-1].key == "kernel"), model
    )


def grown(mask, end, begin, growth, target):
    """The next mask of one array."""
    rest = np.sort(np.abs(end - begin)[~mask])
    smaller = int(np.round((1 - growth) * rest.size))
    if mask.mean() > target or smaller == rest.size:
        return mask
    return mask | (np.abs(end - begin) >= max(rest[smaller], 1e-300))


def test_batch_norm():
    growth, target = 0.4, 0.3

    def step(model, x, y, moving):
        slope = plain.gradient(plain.loss)(model, x, y)
        slope = jax.tree.map(lambda g, m: np.where(m, g, 0), slope, moving)
        return plain.step(model, slope, x)

    def one_round(server, clients, ids, found):
        models, kept = [], []
        for k in ids:
            own, personal, before, trainings = clients[k]
            model = jax.tree.map(np.where, personal, own, server.params)
            if trainings > 1:
                personal = jax.tree.map(
                    lambda may, m, end, begin: (
                        grown(m, end, begin, growth, target) if np.all(may) else m
                    ),
                    *(selectable(own), personal, own, before),
                )
                before = own
            others = jax.tree.map(np.logical_not, personal)
            x, y = plain.examples(k)
            for _ in range(plain.EPOCHS):
                for moving in (personal, others):
                    for u, v in plain.batches(x, y):
                        model = step(model, u, v, moving)
            clients[k] = type(found[k])(model, personal, before, trainings + 1)
            models.append(model)
            kept.append(others)

        def mean(w, *rows):
            ends, masks = np.stack(rows[: len(ids)]), np.stack(rows[len(ids) :])
            count = masks.sum(axis=0)
            return np.where(count > 0, (ends * masks).sum(axis=0) / np.maximum(count, 1), w)

        return server._replace(params=jax.tree.map(mean, server.params, *models, *kept))

    batch_norm.check("fedselect", one_round, rounds=4, growth=growth, target=target, every=1)


def test_plain_loop():
    growth, target = 0.3, 0.5
    kernel = plain_loops.BODY_KERNEL  # the head is a normalization layer in this task

    def loop(world):
        w, own = world.params, {}
        for r, cohort in enumerate(world.cohorts):
            moved, counts = np.zeros_like(w), np.zeros_like(w)
            for k in cohort:
                theta, personal, before, trainings = own.get(k, (w, np.zeros(39, bool), w, 0))
                start = np.where(personal, theta, w)
                if trainings > 1:
                    personal = personal.copy()
                    parts = personal[kernel], theta[kernel], before[kernel]
                    personal[kernel] = grown(*parts, growth, target)
                    before = theta
                end = start
                for _ in range(plain_loops.EPOCHS):
                    for moving in (personal, ~personal):
                        end = world.train(k, end, rate_of(r), epochs=1, part=moving, gradient=slope)
                own[k] = end, personal, before, trainings + 1
                moved += np.where(personal, 0, plain_loops.SIZES[k] * end)
                counts += np.where(personal, 0, plain_loops.SIZES[k])
            w = np.where(counts > 0, moved / np.maximum(counts, 1), w)
            states = {k: plain_loops.vector(*state) for k, state in own.items()}
            deployed = {k: np.where(m, theta, w) for k, (theta, m, _, _) in own.items()}
            yield Round(w, states, deployed)

    settings = {"growth": growth, "target": target, "every": 1, "weight_by_size": True}
    plain_rounds.check("fedselect", loop, settings)


def test_biases_and_normalization_are_never_personalized():
    method = ALGORITHMS["fedselect"](
        federation.task("mlp_bn"), batch_norm.LOCAL, growth=1.0, target=1.0, every=1
    )
    outcome = federation.run(method, rounds=4, join="initial")
    shares = jax.tree.map(
        lambda leaf: leaf.mean(axis=tuple(range(1, leaf.ndim))), outcome.clients.personal
    )
    often = outcome.clients.trainings > 2
    assert np.any(often) and not np.all(often)
    for path, share in jax.tree.leaves_with_path(shares):
        kernel = path[-1].key == "kernel"
        assert np.all(share[~often] == 0) and np.all((share[often] > 0.5) == kernel)
