"""FedAvg: means of locally trained models, and server optimizers."""

import batch_norm
import federation
import identities
import optax
import plain
import quadratics
from quadratics import MEANS, SHARE, START, near, steps_towards, vector


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


def test_server_optimizers_change_the_model():
    average = identities.run("fedavg")
    half = identities.run("fedavg", server_optimizer=optax.sgd(0.5))
    adam = identities.run("fedavg", server_optimizer=optax.adam(0.05))
    momentum = identities.run("fedavg", server_optimizer=optax.sgd(1.0, momentum=0.9))
    for other in (half, adam, momentum):
        assert federation.differ(average.server.params, other.server.params)


def test_batch_norm():
    batch_norm.check("fedavg", batch_norm.averaged(plain.train))
