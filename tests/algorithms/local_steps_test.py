"""A number of local steps in place of epochs, for every method and against plain loops."""

import federation
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quadratics
from quadratics import ENDS, ETA, POINTS, SIZES, START, near, vector

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.training.study.config import default_config
from pfljax.training.study.experiment import build_local_training

STEPS, BATCH = 5, 2
LOCAL = quadratics.LOCAL._replace(batch_size=BATCH, epochs=1, num_steps=STEPS, shuffle=False)


def batches(client):
    """The means of the batches of a client's steps in stored order, again from the first."""
    points = POINTS[ENDS[client] - SIZES[client] : ENDS[client]]
    means = [points[at : at + BATCH].mean(axis=0) for at in range(0, len(points), BATCH)]
    return [means[step % len(means)] for step in range(STEPS)]


def test_fedavg():
    w = START
    for _ in range(2):
        trained = []
        for client in range(3):
            theta = w
            for mean in batches(client):
                theta = theta - ETA * (theta - mean)
            trained.append(theta)
        w = quadratics.SHARE @ np.stack(trained)  # weights are sizes, not steps
    near(vector(quadratics.run("fedavg", 2, local=LOCAL).server.params), w)


def test_scaffold():
    w, c, controls = START, START, np.zeros((3, 4))
    for _ in range(3):
        trained, new = [], []
        for client in range(3):
            theta = w
            for mean in batches(client):
                theta = theta - ETA * (theta - mean + c - controls[client])
            trained.append(theta)
            new.append(controls[client] - c + (w - theta) / (STEPS * ETA))
        w = np.mean(trained, axis=0)
        c, controls = c + (np.stack(new) - controls).mean(axis=0), np.stack(new)
    outcome = quadratics.run("scaffold", 3, local=LOCAL)
    near(vector(outcome.server.average.params), w)
    near(vector(outcome.server.control), c)
    near(vector(outcome.clients), controls)


def test_pfedme():
    lam, rate, inner = 0.7, 0.1, 3
    thetas, trained = [], []
    for client in range(3):
        w = theta = START
        for mean in batches(client):
            for _ in range(inner):
                theta = theta - rate * (theta - mean + lam * (theta - w))
            w = w - ETA * lam * (w - theta)
        thetas.append(theta)
        trained.append(w)
    settings = {"lam": lam, "inner_rate": rate, "inner_steps": inner}
    outcome = quadratics.run("pfedme", 1, local=LOCAL, **settings)
    near(vector(outcome.clients), np.stack(thetas))
    near(vector(outcome.server.params), np.mean(trained, axis=0))


# Methods whose local trainings differ in form; the others run with `-m slow`, as each of them
# compiles three programs.
DIFFERENT = ("fedavg", "ditto", "fedrep", "apfl", "scaffold", "perfedavg", "fedem", "fedgbdt")


@pytest.mark.parametrize(
    "name",
    [n if n in DIFFERENT else pytest.param(n, marks=pytest.mark.slow) for n in ALGORITHMS],
)
def test_as_many_steps_as_epochs_have(name):
    """Client 4 has four batches: two epochs and eight steps are the same, for every method."""
    task, data = federation.task_for(name), jax.tree.map(jnp.asarray, federation.examples())
    client = 4
    assert federation.SIZES[client] == 4 * federation.local_training().batch_size
    outputs = []
    for changes in ({"epochs": 2}, {"epochs": 1, "num_steps": 8}, {"epochs": 1}):
        local = federation.local_training(observe=task.observe)._replace(**changes)
        algorithm = ALGORITHMS[name](task, local, **federation.held_by_the_server(name))

        @jax.jit
        def update(key, algorithm=algorithm):
            server = algorithm.init_server(data.population(), key)
            own = algorithm.init_client(server, data.profile(jnp.int32(client)), key)
            context = core.Context(key, jnp.int32(0), jnp.int32(1), jnp.int32(client), key)
            return algorithm.update_client(server, own, data.of_client(jnp.int32(client)), context)

        output = update(jax.random.key(0))
        whole = output.state, output.sum, output.each, output.metrics
        outputs.append(jax.tree.map(lambda leaf: leaf.astype(float), whole))
    federation.assert_close(outputs[0], outputs[1])
    # Without prototypes there is nothing to learn from, a client may stop before an epoch ends, and
    # statistics of the examples are those of one pass.
    if name in ("fedpcl", "proar_pfed", "em_gmm", "fedgbdt"):
        return
    assert federation.differ(outputs[0], outputs[2], least=1e-6)


def test_prototypes_of_training_steps_are_weighted_by_sizes():
    """Clients see as many examples each, but count with those that they have."""
    local = federation.local_training(epochs=1, num_steps=6, drop_remainder=False)
    algorithm = ALGORITHMS["fedproto"](federation.task(), local, prototypes_in_training=True)
    data = jax.tree.map(jnp.asarray, federation.examples())

    @jax.jit
    def weights(client):
        key = jax.random.key(0)
        server = algorithm.init_server(data.population(), key)
        own = algorithm.init_client(server, data.profile(client), key)
        context = core.Context(key, jnp.int32(0), jnp.int32(1), client, key)
        return algorithm.update_client(server, own, data.of_client(client), context).sum.weight

    for client in (0, 1, 4):
        np.testing.assert_allclose(weights(client).sum(), federation.SIZES[client], rtol=1e-5)


def test_the_config_sets_it():
    config = default_config()
    task = federation.task()
    assert build_local_training(config, task).num_steps == 0
    config.local_steps = 7
    local = build_local_training(config, task)
    assert int(core.steps_per_round(jnp.int32(1000), local)) == 7
    assert int(core.steps_per_round(jnp.int32(0), local)) == 0
