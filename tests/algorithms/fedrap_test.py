"""FedRAP: features that are the sum of those of a common body and of a personal one."""

import functools
import json

import federation
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_loops
import plain_rounds
import quadratics
import trajectories
from plain_loops import BODY, ROUNDS, Round, World, rate_of, vector
from quadratics import ENDS, ETA, LABELED, LABELS, LOCAL, PLAN, POINTS, SIZES, near, softmax

from pfljax import core, models, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.models.ids import Embedding
from pfljax.models.model import from_flax

SETTINGS = {"lam": 0.3, "mu": 0.2, "ramp": 3.0, "tolerance": 0.0}
OWN = np.random.default_rng(8).normal(size=(3, 4, 2)).astype(np.float32)


@functools.cache
def of_linear_classifier(rounds, **settings):
    """A run of the linear classifier, on which clients start from the bodies `OWN`."""
    task = quadratics.linear_classifier()
    start = task.init(None)
    start["body"]["w"] = start["body"]["w"].at[0].set(0)
    task = task._replace(init=lambda key: start)
    algorithm = ALGORITHMS["fedrap"](task, LOCAL, **settings)._replace(
        init_client=lambda server, profile, key: {
            **start,
            "body": {"w": jnp.array(OWN)[profile.id]},
        }
    )
    outcome = federation.run(
        algorithm, data=LABELED, plan=PLAN, rounds=rounds, score=task, devices=2
    )
    return start, outcome


def test_closed_form():
    start, outcome = of_linear_classifier(2, body_factor=0.5, **SETTINGS)
    c, kernel = (
        np.asarray(start[part][name]) for part, name in (("body", "w"), ("head", "kernel"))
    )
    bodies, kernels = list(OWN), [kernel] * 3
    for round in range(2):
        strength, changed = np.tanh((round + 1) / 3), []
        for k, (end, n) in enumerate(zip(ENDS, SIZES, strict=True)):
            x, hot, common = POINTS[end - n : end], np.eye(4)[LABELS[end - n : end]], c
            for _ in range(quadratics.STEPS):
                z = x @ (common + bodies[k])
                slope = (softmax(z @ kernels[k]) - hot) / n
                both = slope @ kernels[k].T
                apart = 2 * 0.3 * strength * x @ (bodies[k] - common) / z.size
                size = 0.2 * strength * np.sign(x @ common) / z.size
                common, bodies[k], kernels[k] = (
                    common - ETA / 2 * x.T @ (both + apart + size),
                    bodies[k] - ETA / 2 * x.T @ (both - apart),
                    kernels[k] - ETA * z.T @ slope,
                )
            changed.append(common)
        c = np.mean(changed, axis=0)
    near(outcome.server.params["body"]["w"], c)
    near(outcome.clients["body"]["w"], np.stack(bodies))
    near(outcome.clients["head"]["kernel"], np.stack(kernels))
    rows = zip(ENDS, SIZES, bodies, kernels, strict=True)
    outputs = [(POINTS[end - n : end] @ (c + body) @ head).sum() for end, n, body, head in rows]
    near(outcome.scores["personal"]["test"]["loss"], outputs)
    near(outcome.metrics["sparsity"], [0.25, 0])  # one of four rows of C starts at zero


def test_without_terms_the_bodies_of_a_linear_network_move_alike():
    for lam, alike in ((0.0, True), (0.3, False)):
        settings = {**SETTINGS, "lam": lam, "mu": 0.0}
        start, outcome = of_linear_classifier(1, **settings)
        common = outcome.server.params["body"]["w"] - start["body"]["w"]
        own = np.mean(outcome.clients["body"]["w"] - OWN, axis=0)
        assert np.allclose(common, own, atol=1e-5) == alike


def test_in_a_ranking_a_client_deploys_the_sum_of_two_tables():
    network = models.MODELS["matrix_factorization"]((2,), 1, vocabulary=(3, 7), width=2)
    task = tasks.ranking(network)
    algorithm = ALGORITHMS["fedrap"](task, LOCAL)
    draws = np.random.default_rng(1).integers(0, 7, (5, 4))
    pairs = jnp.array(np.stack([np.ones_like(draws), draws], axis=-1), jnp.int32)
    data = core.ClientData(pairs, jnp.zeros(5), jnp.int32(0), jnp.int32(5), jnp.zeros(1), 5)
    context = core.Context(jax.random.key(1), jnp.int32(0), jnp.int32(9), jnp.int32(0))
    server = algorithm.init_server(None, jax.random.key(2))
    start = algorithm.init_client(server, None, jax.random.key(3))
    output = jax.jit(algorithm.update_client)(server, start, data, context)
    assert federation.differ(output.state, start, least=1e-3)
    deployed = algorithm.personalize(server, output.state, data, context)
    added = jax.tree.map(jnp.add, server.params["body"], output.state["body"])
    wanted = task.predict({**output.state, "body": added}, pairs)
    near(algorithm.predict(deployed, pairs, None), wanted)


def loop(world: World, lam: float, mu: float, ramp: float, tolerance: float, epochs_of: list):
    def objective(both, x, y, strength):
        common, own = both
        z = plain_loops.features(own, x)
        of_common = plain_loops.features(common, x)
        logits = plain_loops.head(own, of_common + z)
        loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(y)), y])
        terms = mu * jnp.mean(jnp.abs(of_common)) - lam * jnp.mean((z - of_common) ** 2)
        return loss + strength * terms

    rule = jax.jit(jax.value_and_grad(objective))
    parts = ("body", "bias"), ("body", "kernel"), ("head", "bias"), ("head", "kernel")
    first = [vector(*(world.clients[part][kind][k] for part, kind in parts)) for k in range(4)]
    c, own = world.params[BODY], {}
    for r, cohort in enumerate(world.cohorts):
        changed = []
        for k in cohort:
            both, total, rows, last, epochs = (c, own.get(k, first[k])), 0, 0, None, 0
            for epoch in range(plain_loops.EPOCHS):
                for x, y in world.batches(k, epochs=1):
                    value, slope = rule(both, x, y, np.tanh((r + 1) / ramp))
                    total, rows = total + len(y) * float(value), rows + len(y)
                    both = tuple(
                        w - rate_of(r) * np.asarray(g) for w, g in zip(both, slope, strict=True)
                    )
                epochs, mean = epoch + 1, total / rows
                if last is not None and abs(mean - last) < tolerance * abs(last):
                    break
                last = mean
            own[k], epochs = both[1], epochs_of.append(epochs)
            changed.append(both[0])
        c = np.mean(changed, axis=0)  # uniform, whatever the number of examples
        deployed = {k: vector(c, model) for k, model in own.items()} if r == ROUNDS - 1 else None
        yield Round(c, dict(own), deployed)


def test_plain_loop():
    settings, epochs = {**SETTINGS, "tolerance": 0.12}, []
    plain_rounds.check("fedrap", lambda world: loop(world, **settings, epochs_of=epochs), settings)
    assert set(epochs) == {2, 3}, "of these clients some end their training early"


class Items(nn.Module):
    """A row of a table for each item: `[B, 1] -> [B, width]`."""

    items: int
    width: int

    @nn.compact
    def __call__(self, ids):
        return Embedding(self.items, self.width, name="table")(ids[:, 0])


def test_trajectory():
    """The authors' released training of eight users, their tables, and their rankings."""
    theirs = trajectories.read_recent("FedRAP.f64")
    with jax.enable_x64(True):
        follow(theirs, json.loads(str(theirs["meta"]))["hyperparameters"])


def follow(theirs, settings):
    users, rate = range(settings["users"]), settings["lr_network"]
    network = from_flax(
        Items(settings["items"], settings["dim"]), models.layers.Dense(1), (1,), reads_ids=True
    )
    local = core.LocalTraining(
        optax.chain(optax.add_decayed_weights(settings["wd"]), optax.sgd(rate)),
        batch_size=settings["bs"],
        epochs=settings["epochs"],
        shuffle=False,
        schedule=lambda round: settings["decay"] ** round,
        step_schedule=lambda step: settings["scheduler_gamma_per_batch"] ** step,
    )
    # Their weights do not grow, and are whole from the first round on.
    algorithm = ALGORITHMS["fedrap"](
        tasks.multi_label(network),
        local,
        **{name: settings[name] for name in ("lam", "mu")},
        ramp=1e-9,
        body_factor=settings["lr_args"] / rate,
        tolerance=settings["tol"],
    )

    def table(name):
        return {"table": {"embedding": jnp.asarray(theirs[name])}}

    head = {
        "kernel": jnp.asarray(theirs["init/user/kernel"])[:, None],
        "bias": jnp.asarray(theirs["init/user/bias"]),
    }
    server = algorithm.init_server(None, jax.random.key(0))
    server = server._replace(params={"body": table("init/commonality")})
    own = [{"body": table("init/item_personality"), "head": head} for _ in users]
    most = max(len(theirs[f"tape/round0/user{u}/items"]) for u in users)

    @jax.jit
    def update(server, client, items, ratings, size, round):
        data = core.ClientData(items, ratings, jnp.int32(0), size, jnp.zeros(1), most)
        context = core.Context(jax.random.key(0), round, jnp.int32(4), jnp.int32(0))
        return algorithm.update_client(server, client, data, context)

    @jax.jit
    def scores(server, client, items):
        model = algorithm.personalize(server, client, None, None)
        return algorithm.predict(model, items[:, None], None)[:, 0]

    for round in range(4):
        totals = []
        for u in users:
            items, ratings = (
                theirs[f"tape/round{round}/user{u}/{name}"] for name in ("items", "ratings")
            )
            padded = np.zeros((2, most, 1))
            padded[:, : len(items), 0] = items, ratings
            arrays = padded[0].astype(np.int32), padded[1], jnp.int32(len(items))
            output = update(server, own[u], *arrays, jnp.int32(round))
            own[u] = output.state
            totals.append(output.sum)
        uploads = core.Uploads(jax.tree.map(lambda *terms: sum(terms), *totals), ())
        server = algorithm.server_update(server, uploads, None, None)
        ours = {"server/commonality": server.params["body"]["table"]["embedding"]}
        for u in users:
            ours[f"user{u}/item_personality"] = own[u]["body"]["table"]["embedding"]
            ours[f"user{u}/user/kernel"] = own[u]["head"]["kernel"][:, 0]
            ours[f"user{u}/user/bias"] = own[u]["head"]["bias"]
        compared = {f"round{round}/{name}": array for name, array in ours.items()}
        compared = {name: array for name, array in compared.items() if name in theirs}
        assert round in (1, 2) or f"round{round}/server/commonality" in compared
        for name, array in compared.items():
            np.testing.assert_allclose(array, theirs[name], rtol=1e-8, atol=1e-8, err_msg=name)
        candidates = np.c_[theirs["test/positive"], theirs["test/negatives"]].astype(np.int32)
        ranked = jnp.stack([scores(server, own[u], candidates[u]) for u in users])
        batch = core.Batch(None, None, jnp.ones(len(ranked), bool))
        found = tasks.ranking(network).metrics(ranked, batch)
        for metric, name in (("hit", "hr"), ("ndcg", "ndcg")):
            mean = found[metric] / len(ranked)
            np.testing.assert_allclose(mean, theirs[f"round{round}/{name}"], rtol=1e-8)
