"""Local training: what a client computes alone."""

import batch_norm
import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import quadratics
from quadratics import DATA, ETA, MEANS, PLAN, START, STEPS, near, steps_towards, vector

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.training.study import schedules
from pfljax.training.study.config import default_config


def test_closed_form():
    near(vector(quadratics.run("local", 2).clients), steps_towards(START, MEANS, steps=2 * STEPS))


def test_closed_form_with_a_learning_rate_schedule():
    local = core.LocalTraining(
        optax.sgd(ETA), batch_size=8, schedule=lambda round: jnp.power(0.5, round)
    )
    algorithm = ALGORITHMS["local"](quadratics.quadratic(), local)
    outcome = federation.run(
        algorithm, data=DATA, plan=PLAN, rounds=3, score=quadratics.quadratic()
    )
    theta = START
    for round in range(3):
        theta = steps_towards(theta, MEANS, rate=ETA * 0.5**round, steps=1)
    near(vector(outcome.clients), theta)
    assert jax.tree.leaves(outcome.clients)[0].shape[0] == 3


def test_closed_form_with_a_cosine_per_round_and_a_warm_up_per_step():
    """A round multiplies the distance by the product of its steps' `1 - rate`."""
    rounds, steps = 3, 4
    config = default_config()
    config.planned_rounds, config.rounds = rounds, rounds
    config.client_schedule.name = "cosine_decay_schedule"
    cosine = schedules.make(config)["schedule"]
    config.client_schedule.update({"name": "warmup_constant_schedule", "per": "step"})
    config.client_schedule.warmup_steps = 2
    warm_up = schedules.make(config)["step_schedule"]
    local = quadratics.LOCAL._replace(epochs=steps, schedule=cosine, step_schedule=warm_up)
    outcome = quadratics.run("local", rounds, local=local)
    theta = START
    for round in range(rounds):
        eta = ETA * (1 + np.cos(np.pi * round / rounds)) / 2
        for step in range(steps):
            theta = steps_towards(theta, MEANS, rate=eta * min(step / 2, 1), steps=1)
    near(vector(outcome.clients), theta)


def test_batch_norm():
    def one_round(server, clients, ids, found):
        for k in ids:
            clients[k] = plain.train(clients[k], *plain.examples(k))
        return server

    batch_norm.check("local", one_round)
