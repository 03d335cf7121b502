"""FedAvg: means of locally trained models, and server optimizers."""

import batch_norm
import federation
import identities
import numpy as np
import optax
import plain
import quadratics
from quadratics import ETA, MEANS, SHARE, START, STEPS, near, steps_towards, vector

from pfljax.training.study import optimizers
from pfljax.training.study.config import optimizer_config


def test_closed_form():
    w = START
    for _ in range(3):
        w = SHARE @ steps_towards(w, MEANS)
    near(vector(quadratics.run("fedavg", 3).server.params), w)


def test_closed_form_with_server_momentum():
    w, velocity = START, 0
    for _ in range(3):
        change = SHARE @ steps_towards(w, MEANS) - w
        velocity = 0.5 * velocity + change
        w = w + 0.7 * velocity
    optimizer = optax.sgd(0.7, momentum=0.5)
    near(vector(quadratics.run("fedavg", 3, server_optimizer=optimizer).server.params), w)


def clipped(gradient, norm):
    return gradient * np.minimum(1, norm / np.linalg.norm(gradient, axis=-1, keepdims=True))


def test_closed_form_with_clipped_gradients_of_clients_and_server():
    config = optimizer_config("sgd", ETA)
    config.clip_norm = 0.8
    local = quadratics.LOCAL._replace(optimizer=optimizers.make(config))
    config.learning_rate, config.clip_norm = 1.0, 0.1
    server_optimizer = optimizers.make(config)
    w, norms = START, []
    for _ in range(3):
        theta = np.tile(w, (3, 1))
        for _ in range(STEPS):
            norms += [*np.linalg.norm(theta - MEANS, axis=-1)]
            theta = theta - ETA * clipped(theta - MEANS, 0.8)
        w = w + clipped(SHARE @ (theta - w), 0.1)
    assert min(norms) < 0.8 < max(norms)
    outcome = quadratics.run("fedavg", 3, local=local, server_optimizer=server_optimizer)
    near(vector(outcome.server.params), w)


def test_server_optimizers_change_the_model():
    average = identities.run("fedavg")
    half = identities.run("fedavg", server_optimizer=optax.sgd(0.5))
    adam = identities.run("fedavg", server_optimizer=optax.adam(0.05))
    momentum = identities.run("fedavg", server_optimizer=optax.sgd(1.0, momentum=0.9))
    for other in (half, adam, momentum):
        assert federation.differ(average.server.params, other.server.params)


def test_batch_norm():
    batch_norm.check("fedavg", batch_norm.averaged(plain.train))
