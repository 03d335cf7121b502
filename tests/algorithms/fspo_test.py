"""FSPO: what labelled examples change, its gradient by hand, and FedAvg where nothing is read."""

import dataclasses

import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_loops
import plain_rounds
import quadratics
from plain_loops import CLASSES, FEATURES, Round, World, rate_of

from pfljax import core, models, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.data.sources import simulated_preferences
from pfljax.engine import sampling

WIDTH = 3


def linear_task():
    """Outputs `x w` and the loss `1/2 (x w - 1)^2`, so that a label is `1 - x w`."""

    def output_losses(outputs, batch):
        return 0.5 * (outputs - 1) ** 2

    def head(model, features, mask=None, key=None):
        return features @ model["head"]["w"]

    return quadratics.quadratic()._replace(
        init=lambda key: {"head": {"w": jnp.array([0.3, -0.2, 0.5, 0.1])}},
        features=lambda model, inputs, mask=None, key=None: inputs,
        head=head,
        num_features=4,
        output_losses=output_losses,
        metrics=lambda outputs, batch: {
            "accuracy": jnp.sum(batch.mask),
            "loss": jnp.sum(output_losses(outputs, batch) * batch.mask),
        },
    )


def test_closed_form():
    # One step on each client's examples, of which the first half is read; all gradients by hand.
    scale, eta, rounds = 0.7, 0.2, 3
    local = core.LocalTraining(optax.sgd(eta), batch_size=6, shuffle=False)
    algorithm = ALGORITHMS["fspo"](linear_task(), local, width=WIDTH, scale=scale)
    start = algorithm.init_server(quadratics.DATA.population(), jax.random.key(3))
    query = jax.random.normal(jax.random.key(4), (4, WIDTH))
    start = start._replace(params={**start.params, "query": query})
    algorithm = algorithm._replace(init_server=lambda population, key: start)
    w, key, query = (
        np.asarray(x, float)
        for x in (start.params["model"]["head"]["w"], start.params["key"], query)
    )
    ends = quadratics.ENDS
    clients = [
        quadratics.POINTS[e - n : e].astype(float)
        for e, n in zip(ends, quadratics.SIZES, strict=True)
    ]
    for _ in range(rounds):
        moved = []
        for x in clients:
            labelled, new = x[: len(x) // 2], x[len(x) // 2 :]
            labels = 1 - labelled @ w
            memory = (labelled @ key).T @ labels / len(labelled)
            error = new @ w + scale * new @ query @ memory - 1
            pull = error @ new / len(new)  # the gradient in w without reading, and x weighted
            of_memory = query.T @ pull
            of_labels = labelled.T @ (labelled @ key @ of_memory) / len(labelled)
            slopes = (
                pull - scale * of_labels,
                scale * np.outer(labels @ labelled / len(labelled), of_memory),
                scale * np.outer(pull, memory),
            )
            moved.append([a - eta * g for a, g in zip((w, key, query), slopes, strict=True)])
        w, key, query = (
            np.einsum("k,k...->...", quadratics.SHARE, np.stack(arrays))
            for arrays in zip(*moved, strict=True)
        )
    outcome = federation.run(
        algorithm,
        data=quadratics.DATA,
        plan=quadratics.PLAN,
        rounds=rounds,
        score=linear_task(),
        devices=2,
    )
    quadratics.near(outcome.server.params["model"]["head"]["w"], w)
    quadratics.near(outcome.server.params["key"], key)
    quadratics.near(outcome.server.params["query"], query)
    gaps = []
    for x in clients:
        memory = (x @ key).T @ (1 - x @ w) / len(x)
        gaps.append(0.5 * np.sum((x @ w + scale * x @ query @ memory - 1) ** 2))
    np.testing.assert_allclose(outcome.scores["personal"]["test"]["loss"], gaps, rtol=1e-4)


def test_plain_loop():
    """The gradient through the reading by automatic differentiation, on vectors."""
    sizes = plain_loops.HEAD.stop, FEATURES * WIDTH, FEATURES * WIDTH
    ends = np.cumsum(sizes)
    scale = 0.8

    def split(v):
        w, key, query = v[: ends[0]], v[ends[0] : ends[1]], v[ends[1] :]
        return w, key.reshape(FEATURES, WIDTH), query.reshape(FEATURES, WIDTH)

    def memory_of(v, x, y):
        w, key, _ = split(v)
        z = plain_loops.features(w, x)
        # The negative gradient of the cross-entropy in the logits.
        labels = jnp.eye(CLASSES)[y] - jax.nn.softmax(plain_loops.head(w, z), axis=1)
        return (z @ key).T @ labels / max(len(y), 1)

    def loss(v, x, y):
        half = len(y) // 2
        w, _, query = split(v)
        z = plain_loops.features(w, x[half:])
        logits = plain_loops.head(w, z) + scale * z @ query @ memory_of(v, x[:half], y[:half])
        chosen = logits[jnp.arange(len(y) - half), y[half:]]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)

    slope = jax.jit(jax.grad(loss))

    def loop(world: World):
        # In the order of names: key, model, query.
        params = world.server.params
        v = plain_loops.vector(plain_loops.flat(params["model"]), params["key"], params["query"])
        for r, cohort in enumerate(world.cohorts):
            moved = {
                k: world.train(k, v, rate_of(r), gradient=slope, part=slice(None)) for k in cohort
            }
            v = plain_loops.mean(moved)
            w, key, query = split(v)
            deployed = {
                k: plain_loops.vector(memory_of(v, world.x[k], world.y[k]), w, query)
                for k in range(4)
            }
            yield Round(plain_loops.vector(key, w, query), {}, deployed)

    settings = {"width": WIDTH, "scale": scale}
    plain_rounds.check("fspo", loop, settings, lambda server: server.params)


def test_without_reading_is_fedavg():
    # The two halves of each batch are equal.
    plan = sampling.CohortPlan(num_clients=5, size=5)
    average = identities.run("fedavg", data=identities.twins(), plan=plan)
    blind = identities.run("fspo", data=identities.twins(), plan=plan, scale=0.0)
    federation.assert_close(blind.server.params["model"], average.server.params)
    federation.assert_close(blind.scores["personal"], average.scores["global"])
    reading = identities.run("fspo", data=identities.twins(), plan=plan, scale=1.0)
    assert federation.differ(reading.server.params["model"], average.server.params)
    assert federation.differ(reading.scores["personal"], average.scores["global"])


def test_shots_are_examples_of_the_client_drawn_once():
    task, data = federation.task(), federation.examples()
    data = jax.tree.map(jnp.asarray, data).of_client(jnp.int32(4))  # of 16 examples
    context = core.Context(
        jax.random.key(1), jnp.int32(0), jnp.int32(1), client_key=jax.random.key(2)
    )

    def memory(shots, context=context):
        algorithm = ALGORITHMS["fspo"](task, federation.local_training(), width=2, shots=shots)
        server = algorithm.init_server(None, jax.random.key(0))
        return algorithm.personalize(server, (), data, context)["memory"]

    whole = memory(0)
    federation.assert_close(memory(16), whole)
    federation.assert_close(memory(100), whole)
    assert federation.differ(memory(5), whole)
    # The same ones in every round, and others for another client.
    later = context._replace(round=jnp.int32(7), key=jax.random.key(9))
    federation.assert_close(memory(5, later), memory(5))
    other = context._replace(client_key=jax.random.key(3))
    assert federation.differ(memory(5, other), memory(5))


def users_with_pairs():
    """Clients of 16 pairs, of which 12 are for training; the last 30 of 150 are held out."""
    options = {"users": 150, "pairs": 16, "width": 8, "rewards": 8, "alpha": 0.02}
    pool = simulated_preferences.load_simulated_preferences(**options)
    made = federation.examples_of(
        pool.inputs, pool.targets, np.full(150, 16), num_classes=1, unseen=30
    )
    first = made.offsets["train"]
    sizes = {"train": 12, "validation": 0, "test": 4}
    return dataclasses.replace(
        made,
        offsets={"train": first, "validation": first, "test": first + 12},
        sizes={name: np.full(150, size, np.int32) for name, size in sizes.items()},
        max_train_size=12,
        max_eval_size=12,
    )


def test_it_learns_to_read_preferences():
    """New users, of whom the model has read twelve pairs, are predicted better than by FedAvg."""
    task = tasks.preference(models.logistic((8,), 1))
    local = core.LocalTraining(optax.sgd(0.5), batch_size=12)
    options = {"plan": sampling.CohortPlan(num_clients=120, size=30), "rounds": 80, "chunk": 30}
    accuracy = {}
    for name in ("fedavg", "fspo"):
        algorithm = ALGORITHMS[name](task, local)
        outcome = federation.run(algorithm, data=users_with_pairs(), score=task, **options)
        right = outcome.scores["personal"]["test"]["accuracy"]
        accuracy[name] = right[120:].sum() / (4 * 30)
    assert accuracy["fspo"] > accuracy["fedavg"] + 0.05, accuracy
