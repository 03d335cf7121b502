"""Reptile: a common model for fine-tuning, and FedAvg with fine-tuning at a step of one."""

import batch_norm
import federation
import identities
import numpy as np
import plain
import plain_loops
import plain_rounds
import quadratics
from quadratics import MEANS, START, near, steps_towards, vector


def test_closed_form():
    epsilon, annealing, w = 0.6, 0.5, START
    for t in range(4):
        step = epsilon * (1 - annealing * t / 4)
        w = w + step * (steps_towards(w, MEANS) - w).mean(axis=0)
    outcome = quadratics.run("reptile", 4, epsilon=epsilon, annealing=annealing)
    near(vector(outcome.server.params), w)
    gaps = quadratics.personal_gaps(steps_towards(w, MEANS, steps=1))
    near(outcome.scores["personal"]["test"]["loss"], gaps)


def test_with_a_constant_step_of_one_is_fine_tuned_averaging():
    same = {"data": identities.twins(), "plan": quadratics.sampling.CohortPlan(5, 5)}
    tuned = identities.run("fedavg_ft", **same)  # all clients have one size
    constant, falling, small = (
        identities.run("reptile", epsilon=epsilon, annealing=annealing, **same)
        for epsilon, annealing in ((1.0, 0.0), (1.0, 1.0), (0.5, 0.0))
    )
    federation.assert_close(constant.server.params, tuned.server.params)
    federation.assert_close(constant.scores["personal"], tuned.scores["personal"], 1e-5)
    assert federation.differ(falling.server.params, tuned.server.params)
    assert federation.differ(small.server.params, tuned.server.params)


def test_batch_norm():
    def one_round(server, clients, ids, found):
        w, trained = server.params, [plain.train(server.params, *plain.examples(k)) for k in ids]
        means = plain.average(trained, np.ones(len(ids)))
        moved = plain.combine((0.5, 0.5), (w, means))
        return server._replace(params=plain.with_statistics(moved, plain.statistics(means)))

    batch_norm.check(
        "reptile",
        one_round,
        personal=lambda server, client, x, y: plain.train(server.params, x, y, epochs=1),
        epsilon=0.5,
        annealing=0.0,
    )


def test_plain_loop():
    def loop(world):
        w = world.params
        for r, cohort in enumerate(world.cohorts):
            models = [world.train(k, w, plain_loops.rate_of(r)) for k in cohort]
            w = w + 0.8 * (1 - 0.5 * r / plain_loops.ROUNDS) * (np.mean(models, axis=0) - w)
            rate = plain_loops.rate_of(plain_loops.ROUNDS)
            tuned = {k: world.train(k, w, rate, 2) for k in range(4)}
            yield plain_loops.Round(w, {}, tuned)

    settings = {"epsilon": 0.8, "annealing": 0.5, "fine_tuning_epochs": 2}
    plain_rounds.check("reptile", loop, settings)
