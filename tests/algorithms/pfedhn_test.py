"""pFedHN: a hypernetwork that generates the clients' models from embeddings."""

import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quadratics
from quadratics import MEANS, POINTS, SIZES, near, personal_gaps, steps_towards, vector

from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling
from pfljax.ops import hypernetwork


def test_closed_form():
    # Without hidden layers the model of an embedding v is `bias + v @ kernel`. The third client
    # never takes part.
    rate, momentum, decay, clip, rounds, joining = 0.2, 0.5, 0.3, 1.4, 3, 4
    settings = {"layers": 0, "embedding_size": 2, "spread": 0.5, "joining_rounds": joining}
    settings |= {"linear_layer": False, "weight_decay": decay, "clip": clip}
    settings["data"] = federation.examples_of(
        POINTS, np.zeros(len(POINTS), np.int32), SIZES, num_classes=1, unseen=1
    )
    settings["plan"] = sampling.CohortPlan(num_clients=2, size=2)
    start = quadratics.run_from_random_weights(
        "pfedhn", eta=0.0, **{**settings, "weight_decay": 0.0}
    ).server
    heads = start.network["heads"]
    kernel, bias = vector(heads["kernel"]), vector(heads["bias"])
    embeddings = start.embeddings
    assert np.std(kernel) > 0.01
    velocity, norms = [0, 0, 0], []
    for _ in range(rounds):
        theta = bias + embeddings @ kernel
        change = steps_towards(theta, MEANS[:2]) - theta
        slopes = change.mean(axis=0), embeddings.T @ change / 2, change @ kernel.T
        norms.append(np.sqrt(sum(np.sum(g**2) for g in slopes)))
        shortened = [g * min(1, clip / norms[-1]) for g in slopes]
        arrays = bias, kernel, embeddings
        velocity = [
            momentum * v + g - decay * x
            for v, g, x in zip(velocity, shortened, arrays, strict=True)
        ]
        bias, kernel, embeddings = (x + rate * v for x, v in zip(arrays, velocity, strict=True))
    assert min(norms) < clip < max(norms), "some gradients should be clipped, and some not"
    outcome = quadratics.run_from_random_weights(
        "pfedhn", rounds=rounds, rate=rate, momentum=momentum, **settings
    )
    near(vector(outcome.server.network["heads"]["bias"]), bias)
    near(vector(outcome.server.network["heads"]["kernel"]), kernel)
    near(outcome.server.embeddings, embeddings)
    unseen = embeddings.mean(axis=0)
    for _ in range(joining):
        theta = bias + unseen @ kernel
        unseen = unseen + rate * (steps_towards(theta, MEANS[2]) - theta) @ kernel.T
    deployed = bias + np.stack([*embeddings, unseen]) @ kernel
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(deployed))


def test_without_client_embeddings_is_fedavg():
    # Only the heads' biases then move, along the mean of clients of one size.
    options = {"data": identities.twins(), "plan": sampling.CohortPlan(num_clients=5, size=5)}
    fixed = federation.task().init(jax.random.key(7))
    task = federation.task()._replace(init=lambda key: fixed)
    local = federation.local_training(shuffle=False)
    algorithm = ALGORITHMS["pfedhn"](
        task,
        local,
        rate=0.5,
        layers=0,
        linear_layer=False,
        spread=0.0,
        weight_decay=0.0,
        clip=1e9,
    )

    def init_server(population, key):
        server = algorithm.init_server(population, key)
        return server._replace(embeddings=jnp.zeros_like(server.embeddings))

    blind = federation.run(algorithm._replace(init_server=init_server), score=task, **options)
    momentum = optax.sgd(0.5, momentum=0.9)
    average = identities.run("fedavg", task=task, server_optimizer=momentum, **options)
    federation.assert_close(blind.server.network["heads"]["bias"], average.server.params)
    federation.assert_close(blind.scores["personal"], average.scores["personal"], 1e-5)
    seeing = federation.run(algorithm, score=task, **options)
    assert federation.differ(seeing.scores["personal"], blind.scores["personal"])


@pytest.mark.slow
def test_every_setting_counts():
    usual = identities.run("pfedhn").scores["personal"]
    for change in (
        {"rate": 0.02},
        {"momentum": 0.5},
        {"embedding_size": 2},
        {"hidden": 50},
        {"layers": 2},
        {"spread": 0.2},
        {"weight_decay": 0.1},
        {"clip": 0.01},
        {"linear_layer": False},
        {"joining_rounds": 3},
    ):
        scores = identities.run("pfedhn", **change).scores["personal"]
        assert federation.differ(scores, usual), change
    seen, unseen = (
        jax.tree.map(lambda leaf, rows=rows: leaf[rows], (scores, usual))
        for rows in (slice(8), slice(8, None))
    )
    assert not federation.differ(*seen) and federation.differ(*unseen)  # joining_rounds, the last


def test_the_first_models_are_near_the_initialization_of_the_task():
    algorithm = ALGORITHMS["pfedhn"](federation.task(), federation.local_training(), spread=0.1)
    server = algorithm.init_server(federation.examples().population(), jax.random.key(3))
    models = hypernetwork.generate(server.network, server.embeddings)
    start = server.network["heads"]["bias"]
    for made, own in zip(jax.tree.leaves(models), jax.tree.leaves(start), strict=True):
        scale = np.sqrt(np.mean(own**2))
        assert 0.01 * scale < np.sqrt(np.mean((made - own) ** 2)) < 0.5 * scale
