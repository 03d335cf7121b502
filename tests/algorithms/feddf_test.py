"""FedDF: FedAvg, and the distillation of the clients' models into their average."""

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
from plain_loops import Round, World, rate_of
from quadratics import MEANS, SHARE, START, softmax, steps_towards, vector

from pfljax import core

STEPS, RATE = 7, 0.05
SETTINGS = {"distillation_steps": STEPS, "distillation_rate": RATE}


class Adam:
    """Steps of Adam whose rate falls to 0 along a cosine."""

    def __init__(self, params):
        self.mean = self.square = jax.tree.map(np.zeros_like, params)
        self.count = 0

    def step(self, params, slope):
        rate = RATE * (1 + np.cos(np.pi * self.count / STEPS)) / 2
        self.count += 1
        self.mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, self.mean, slope)
        self.square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, self.square, slope)
        first, second = 1 - 0.9**self.count, 1 - 0.999**self.count
        return jax.tree.map(
            lambda p, m, v: p - rate * (m / first) / (np.sqrt(v / second) + 1e-8),
            params,
            self.mean,
            self.square,
        )


def examples_of_the_server(inputs):
    labels = np.zeros(len(inputs), np.int32)  # not used
    size = np.int32(len(inputs))
    return core.ClientData(inputs, labels, np.int32(0), size, None, max_size=len(inputs))


def test_closed_form():
    x = np.random.default_rng(9).normal(size=(6, 4)).astype(np.float32)
    w = START
    for _ in range(2):
        trained, adam = steps_towards(w, MEANS), Adam(START)
        # The logits are x - theta; the mean of the clients' weighs them equally.
        teacher, w = softmax(x - trained.mean(axis=0)), SHARE @ trained
        for _ in range(STEPS):
            w = adam.step(w, -(softmax(x - w) - teacher).mean(axis=0))
    outcome = quadratics.run("feddf", 2, server_data=examples_of_the_server(x), **SETTINGS)
    np.testing.assert_allclose(vector(outcome.server.params), w, rtol=1e-4, atol=1e-5)


def test_without_distillation_is_fedavg_and_with_it_not():
    average = identities.run("fedavg").server
    undistilled = identities.run("feddf", distillation_steps=5, distillation_rate=0.0).server
    federation.assert_close(undistilled, average)
    distilled = identities.run("feddf", distillation_steps=5, distillation_rate=0.05).server
    assert federation.differ(distilled.params, average.params)


def test_batch_norm():
    data = federation.server_data()
    x = data.inputs.astype(np.float64)

    @jax.jit
    @jax.grad
    def slope_of(model, x, teacher):
        outputs = jax.nn.log_softmax(plain.logits(model, x, True))
        return -jnp.mean(jnp.sum(teacher * outputs, axis=1))

    def one_round(server, clients, ids, found):
        trained = [plain.train(server.params, *plain.examples(k)) for k in ids]
        model = plain.average(trained, plain.sizes(ids))
        teacher = jax.nn.softmax(sum(plain.logits(own, x, False) for own in trained) / len(ids))
        adam = Adam(model)
        for _ in range(STEPS):
            moved = adam.step(model, slope_of(model, x, teacher))
            model = plain.with_statistics(moved, plain.observed(model, x))
        return server._replace(params=model)

    with jax.enable_x64(True):
        held = examples_of_the_server(x)
    batch_norm.check("feddf", one_round, server_data=held, **SETTINGS)


def test_plain_loop():
    x = np.random.default_rng(9).normal(size=(6, plain_loops.INPUTS))

    @jax.jit
    def logits(w):
        return plain_loops.head(w, plain_loops.features(w, x))

    @jax.jit
    @jax.grad
    def slope_of(w, teacher):
        return -jnp.mean(jnp.sum(teacher * jax.nn.log_softmax(logits(w)), axis=1))

    def loop(world: World):
        w = world.params
        for r, cohort in enumerate(world.cohorts):
            models = {k: world.train(k, w, rate_of(r)) for k in cohort}
            teacher = jax.nn.softmax(sum(logits(own) for own in models.values()) / len(cohort))
            w, adam = plain_loops.mean(models), Adam(w)
            for _ in range(STEPS):
                w = adam.step(w, np.asarray(slope_of(w, teacher)))
            yield Round(w, {}, {k: w for k in range(4)})

    settings = {"server_data": examples_of_the_server(x), **SETTINGS}
    plain_rounds.check("feddf", loop, settings)
