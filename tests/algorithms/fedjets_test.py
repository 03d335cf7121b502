"""FedJETs: experts, a gate on frozen features, anchor clients, and predictions without labels."""

import functools

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import plain
import plain_loops
import plain_rounds
import pytest
import quadratics
from plain_loops import MODEL, Round, World, rate_of
from quadratics import ENDS, ETA, LABELED, LABELS, PLAN, POINTS, SIZES, STEPS, near, softmax

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.errors import UserError

KAPPA = 0.7


def choose(means, anchors, k, top):
    """The experts of client k: its own one if it is an anchor, and those of the largest gate."""
    return np.sort(np.argsort(-np.where(anchors == k, np.inf, means), kind="stable")[:top])


def test_closed_form():
    # The gradient of -log sum_m a_m p_m(y) in the logits of a and p_m, with r_m the share of m.
    def random_init(key):
        keys = jax.random.split(key)
        w, head = (jax.random.normal(k, s) for k, s in zip(keys, ((4, 2), (2, 4)), strict=True))
        return {"body": {"w": w}, "head": {"kernel": head}}

    task = quadratics.linear_classifier()._replace(init=random_init)
    algorithm = ALGORITHMS["fedjets"](task, quadratics.LOCAL, experts=3, top=2, anchor_weight=KAPPA)
    start = algorithm.init_server(LABELED.population(), core.streams.key_of(jax.random.key(0), 0))
    models = [start.experts.params["body"]["w"], start.experts.params["head"]["kernel"]]
    gate = [start.gate.params["kernel"], start.gate.params["bias"]]
    models, gate = ([np.asarray(leaf, np.float64) for leaf in leaves] for leaves in (models, gate))
    anchors, common = np.asarray(start.anchors), np.asarray(start.common["body"]["w"], np.float64)
    assert sorted(anchors) == [0, 1, 2]
    sums, counts, gates = [0, 0], np.zeros(3), [0, 0]
    for k, (end, n) in enumerate(zip(ENDS, SIZES, strict=True)):
        x, hot = POINTS[end - n : end].astype(np.float64), np.eye(4)[LABELS[end - n : end]]
        z = x @ common
        held = choose(softmax(z @ gate[0] + gate[1]).mean(axis=0), anchors, k, 2)
        w, head, (kernel, bias) = models[0][held].copy(), models[1][held].copy(), gate
        own = np.eye(3)[np.argmax(anchors == k)]
        for _ in range(STEPS):
            logits = z @ kernel + bias
            mixing, full = softmax(logits[:, held]), softmax(logits)
            p = np.stack([softmax(x @ w[m] @ head[m]) for m in range(2)], axis=1)
            likely = mixing * np.sum(p * hot[:, None], axis=2)
            share = likely / likely.sum(axis=1, keepdims=True)
            slope = KAPPA * (full - own)
            slope[:, held] += mixing - share
            kernel, bias = kernel - ETA * z.T @ slope / n, bias - ETA * slope.mean(axis=0)
            for m in range(2):
                gap = share[:, m : m + 1] * (p[:, m] - hot) / n
                change = x.T @ gap @ head[m].T, (x @ w[m]).T @ gap
                w[m], head[m] = w[m] - ETA * change[0], head[m] - ETA * change[1]
        counts[held] += n
        for total, old, new in zip((0, 1), models, (w, head), strict=True):
            change = np.zeros_like(old)
            change[held] = n * (new - old[held])
            sums[total] = sums[total] + change
        gates = [g + n * c for g, c in zip(gates, (kernel - gate[0], bias - gate[1]), strict=True)]
    weight = np.maximum(counts, 1)[:, None, None]
    outcome = federation.run(algorithm, data=LABELED, plan=PLAN, rounds=1, score=task, devices=2)
    found = outcome.server
    near(found.experts.params["body"]["w"], models[0] + sums[0] / weight)
    near(found.experts.params["head"]["kernel"], models[1] + sums[1] / weight)
    near(found.gate.params["kernel"], gate[0] + gates[0] / SIZES.sum())
    near(found.gate.params["bias"], gate[1] + gates[1] / SIZES.sum())


def test_with_one_expert_is_fedavg():
    fixed = federation.task().init(jax.random.key(7))
    task = federation.task()._replace(init=lambda key: fixed)
    average = identities.run("fedavg", task=task)
    single = identities.run("fedjets", task=task, experts=1, top=1)
    only = jax.tree.map(lambda leaf: leaf[0], single.server.experts.params)
    federation.assert_close(only, average.server.params)
    federation.assert_close(single.scores["personal"], average.scores["personal"], 1e-5)
    two = identities.run("fedjets", task=task, experts=2, top=2)
    first = jax.tree.map(lambda leaf: leaf[0], two.server.experts.params)
    assert federation.differ(first, average.server.params)


def test_more_experts_for_a_client_than_there_are():
    with pytest.raises(UserError, match="top is 3 and experts is 2; set hparams.fedjets.top"):
        federation.make("fedjets", experts=2, top=3)


def test_predictions_need_no_data_and_mix_the_experts_of_each_example():
    algorithm = federation.make("fedjets", experts=4, top=2)
    server = algorithm.init_server(federation.examples().population(), jax.random.key(1))
    gate = server.gate.params
    sharp = {"kernel": 5 * gate["kernel"], "bias": 0 * gate["bias"]}
    server = server._replace(gate=server.gate._replace(params=sharp))
    deployed = algorithm.personalize(server, (), None, None)  # a held-out client without labels
    x = federation.examples().inputs[:6]
    found = np.exp(algorithm.predict(deployed, x, None))
    task = federation.task()
    z = task.features(server.common, x)
    gate = np.asarray(z @ server.gate.params["kernel"] + server.gate.params["bias"])
    wanted, used = np.zeros((6, 3)), set()
    for i in range(6):
        best = np.argsort(-gate[i])[:2]
        used.add(tuple(sorted(best.tolist())))
        for m, share in zip(best, softmax(gate[i : i + 1, best])[0], strict=True):
            model = jax.tree.map(lambda leaf, m=m: leaf[m], server.experts.params)
            wanted[i] += share * softmax(np.asarray(task.predict(model, x[i : i + 1])))[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert len(used) > 1, "the same experts for all examples"


def rows(models, count):
    return [jax.tree.map(lambda leaf, m=m: leaf[m], models) for m in range(count)]


def test_batch_norm():
    def logits(gate, z):
        return z @ gate["kernel"] + gate["bias"]

    @jax.jit
    def objective(models, x, y, z, own, held):
        weights = logits(models["gate"], z)
        outputs = jnp.stack([plain.logits(m, x, True) for m in models["experts"]])
        p = jax.nn.softmax(weights[:, held]).T[..., None] * jax.nn.softmax(outputs)
        picked = jnp.log(jnp.sum(p, axis=0)[jnp.arange(len(y)), y])
        return -jnp.mean(picked + KAPPA * jax.nn.log_softmax(weights) @ own)

    slope = jax.jit(jax.grad(objective))

    def one_round(server, clients, ids, found):
        models, gate = rows(server.experts.params, 3), server.gate.params
        trained, gates = [[] for _ in models], []
        for k in ids:
            x, y = plain.examples(k)
            z = plain.features(server.common, x, False)
            own = (server.anchors == k).astype(float)
            held = choose(jax.nn.softmax(logits(gate, z)).mean(axis=0), server.anchors, k, 2)
            mixed = {"experts": [models[m] for m in held], "gate": gate}
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    g = slope(mixed, u, v, plain.features(server.common, u, False), own, held)
                    pairs = zip(mixed["experts"], g["experts"], strict=True)
                    stepped = [plain.step(model, part, u) for model, part in pairs]
                    moved = plain.axpy(-plain.RATE, g["gate"], mixed["gate"])
                    mixed = {"experts": stepped, "gate": moved}
            for m, model in zip(held, mixed["experts"], strict=True):
                trained[m].append((model, len(y)))
            gates.append(mixed["gate"])
        models = [
            plain.average(*zip(*new, strict=True)) if new else old
            for new, old in zip(trained, models, strict=True)
        ]
        stacked = jax.tree.map(lambda *leaf: jnp.stack(leaf), *models)
        return server._replace(
            experts=server.experts._replace(params=stacked),
            gate=server.gate._replace(params=plain.average(gates, plain.sizes(ids))),
        )

    settings = {"experts": 3, "top": 2, "anchor_weight": KAPPA}
    batch_norm.check("fedjets", one_round, rounds=1, **settings)


def test_plain_loop():
    count, top = 5, 2
    untrained = []

    @functools.partial(jax.jit, static_argnames="held")
    def objective(w, x, y, z, own, held):
        """`w` are the held experts, then the gate."""
        models, gate = w[: top * 39].reshape(top, 39), w[top * 39 :]
        logits = z @ gate[count:].reshape(-1, count) + gate[:count]
        mixing = jax.nn.softmax(logits[:, held])
        p = sum(
            mixing[:, i] * jnp.exp(-plain_loops.example_losses(model, x, y))
            for i, model in enumerate(models)
        )
        return -jnp.mean(jnp.log(p) + KAPPA * jax.nn.log_softmax(logits) @ own)

    gradient = jax.jit(jax.grad(objective), static_argnames="held")

    def loop(world: World):
        leaves = jax.tree.leaves(world.server.experts.params)
        models = np.stack(
            [np.concatenate([np.ravel(leaf[m]) for leaf in leaves]) for m in range(count)]
        )
        gate = plain_loops.flat(world.server.gate.params)  # bias, then kernel
        common = plain_loops.flat(world.server.common)
        anchors = np.asarray(world.server.anchors)
        features = [np.asarray(plain_loops.features(common, x)) for x in world.x]
        fixed = plain_loops.vector(anchors, common)
        for r, cohort in enumerate(world.cohorts):
            trained, gates = {m: {} for m in range(count)}, {}
            for k in cohort:
                logits = features[k] @ gate[count:].reshape(-1, count) + gate[:count]
                held = choose(softmax(logits).mean(axis=0), anchors, k, top)
                w = np.concatenate([*models[held], gate])
                for x, y in world.batches(k):
                    z = np.asarray(plain_loops.features(common, x))
                    g = gradient(w, x, y, z, (anchors == k).astype(float), tuple(held.tolist()))
                    w = w - rate_of(r) * np.asarray(g)
                for i, m in enumerate(held):
                    trained[m][k] = w[i * 39 : (i + 1) * 39][MODEL]
                gates[k] = w[top * 39 :]
            models = np.stack(
                [plain_loops.mean(trained[m]) if trained[m] else models[m] for m in range(count)]
            )
            gate = plain_loops.mean(gates)
            untrained.append(sum(not clients for clients in trained.values()))
            state = plain_loops.vector(plain_loops.by_array(models), gate, fixed)
            yield Round(state, {})

    def view(server):
        return [server.experts, server.gate, server.anchors, server.common]

    settings = {"experts": count, "top": top, "anchor_weight": KAPPA}
    plain_rounds.check("fedjets", loop, settings, view)
    assert max(untrained) > 0, "every expert is trained in every round"
