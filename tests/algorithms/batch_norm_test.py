"""Batch normalization in every method: each equals a plain loop, after every round.

Five of eight clients take part in a round and a ninth never does; their sizes differ, they train
for two epochs, and their last batches are not full. Absent clients are compared too.
"""

import functools
import itertools

import federation
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import pytest

from pfljax import core, models, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.core import params
from pfljax.engine import mapping, sampling
from pfljax.engine.clients.on_device import to_host
from pfljax.engine.programs import build_init, build_rounds
from pfljax.engine.round import cohort_key
from pfljax.errors import UserError
from pfljax.models.layers import BatchNorm, Dense
from pfljax.ops import averaging, simplex

ROUNDS = 2  # after which some clients have come back, and some never came
TASK = federation.task("mlp_bn")
LOCAL = federation.local_training(shuffle=False, observe=TASK.observe)
CLIENTS = federation.PLAN.num_clients  # that ever take part


def wide(tree):
    """Floats in float64, copied: what the engine takes over must not change under us."""

    def one(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf.astype(jnp.float64)

    return jax.tree.map(one, tree)


def on_host(state):
    host = jax.tree.map(np.array, to_host(state, len(federation.SIZES)))
    clients = [jax.tree.map(lambda leaf, k=k: leaf[k], host.clients) for k in range(9)]
    return host.server, clients


def check(name, plain_round, *, personal=None, local=LOCAL, rounds=ROUNDS, **settings):
    """Runs a method in the engine and as a plain loop, and compares after each round.

    Args:
      name: of the method.
      plain_round: `(server, clients, ids, found) -> server`, a round of the cohort `ids`; replaces
        the clients' states in the list. `found` are the clients' states in the engine, after it.
      personal: `(server, client, x, y) -> model`, compared with `personalize` after the last round
        for all clients, the unseen one too.
      local: how clients train.
      rounds: how many.
      **settings: of the method.
    """
    with jax.enable_x64(True):
        algorithm = ALGORITHMS[name](TASK, local, **settings)
        device = jax.devices()[:1]
        placed = wide(mapping.replicate(federation.examples(), device))
        state = wide(
            build_init(algorithm, join="initial", devices=device)(placed, jax.random.key(0))
        )
        advance = build_rounds(
            algorithm, federation.PLAN, clients_per_chunk=2, rounds_per_call=1, devices=device
        )
        server, clients = on_host(state)
        for number in range(rounds):
            key = cohort_key(jax.random.key(0), jnp.int32(number))
            ids = sorted(int(k) for k in sampling.sample(federation.PLAN, key))
            state, _ = advance(state, placed, np.int32(rounds), np.int32(1))
            found_server, found = on_host(state)
            server = plain_round(server, clients, ids, found)
            close(found_server, server)
            for k, client in enumerate(clients):
                close(found[k], client)
        if personal is not None:
            of_engine = jax.jit(algorithm.personalize)
            for k in range(len(clients)):
                data = wide(jax.tree.map(jnp.asarray, federation.examples())).of_client(
                    jnp.int32(k)
                )
                context = core.Context(jax.random.key(k), jnp.int32(0), jnp.int32(1), jnp.int32(k))
                deployed = of_engine(server, clients[k], data, context)
                close(deployed, personal(server, clients[k], *plain.examples(k)))


def close(found, wanted):
    federation.assert_close(
        jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, wanted), tolerance=1e-9
    )


def fed_average(server, trained, ids, weights=None):
    """The server's model becomes the clients' average."""
    return server._replace(params=plain.average(trained, weights or plain.sizes(ids)))


def test_local():
    def one_round(server, clients, ids, found):
        for k in ids:
            clients[k] = plain.train(clients[k], *plain.examples(k))
        return server

    check("local", one_round)


def averaged(train):
    """A round of FedAvg whose clients train by `train(w, x, y)`."""

    def one_round(server, clients, ids, found):
        trained = [train(server.params, *plain.examples(k)) for k in ids]
        return fed_average(server, trained, ids)

    return one_round


def test_fedavg():
    check("fedavg", averaged(plain.train))


def test_fedavg_ft():
    check(
        "fedavg_ft",
        averaged(plain.train),
        fine_tuning_epochs=3,
        personal=lambda server, client, x, y: plain.train(server.params, x, y, epochs=3),
    )


def test_fedprox():
    check(
        "fedprox",
        averaged(lambda w, x, y: plain.train(w, x, y, plain.pulled, w, 0.5)),
        mu=0.5,
    )


def test_fedgen_without_its_generator():
    # What is generated reaches the head only, by random draws; without weight it has no part.
    def one_round(server, clients, ids, found):
        average = averaged(plain.train)(server.average, clients, ids, found)
        return server._replace(average=average)

    check("fedgen", one_round, weight=0.0, generator_steps=0)


def test_ditto():
    def one_round(server, clients, ids, found):
        for k in ids:
            pull = (plain.pulled, server.params, 0.5)
            clients[k] = plain.train(clients[k], *plain.examples(k), *pull, epochs=1)
        return averaged(plain.train)(server, clients, ids, found)

    check("ditto", one_round, lam=0.5)


def test_scaffold():
    def one_round(server, clients, ids, found):
        w, c = server.average.params, server.control
        trained, change = [], jax.tree.map(jnp.zeros_like, c)
        for k in ids:
            x, y = plain.examples(k)
            theta, seen = w, []
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    slope = plain.gradient(plain.loss)(theta, u, v)
                    seen.append(slope)
                    corrected = plain.combine((1, 1, -1), (slope, c, clients[k]))
                    theta = plain.step(theta, corrected, u)
            control = plain.average(seen, np.ones(len(seen)))
            change = plain.combine((1, 1, -1), (change, control, clients[k]))
            clients[k] = control
            trained.append(theta)
        for tree in (c, *clients):
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(plain.statistics(tree)))
        average = fed_average(server.average, trained, ids, np.ones(len(ids)).tolist())
        return server._replace(average=average, control=plain.axpy(1 / CLIENTS, change, c))

    check("scaffold", one_round)


def body_and_head(server, client, train):
    """Trains body and head of a client; returns its head and its body."""
    trained = train({**server.average.params, **client})
    return {"head": trained["head"]}, {"body": trained["body"]}


def personal_heads(train):
    """A round of FedPer whose clients train by `train(model, x, y)`."""

    def one_round(server, clients, ids, found):
        bodies = []
        for k in ids:
            x, y = plain.examples(k)
            whole = functools.partial(train, x=x, y=y)
            clients[k], body = body_and_head(server, clients[k], whole)
            bodies.append(body)
        return server._replace(average=fed_average(server.average, bodies, ids))

    return one_round


def head_then_body(model, x, y, *objective, epochs=1):
    model = plain.train(model, x, y, part="head", epochs=epochs)
    return plain.train(model, x, y, *objective, part="body")


def test_fedper():
    check("fedper", personal_heads(plain.train))


def test_fedrep():
    check("fedrep", personal_heads(functools.partial(head_then_body, epochs=3)), head_epochs=3)


def test_fedbabu():
    def one_round(server, clients, ids, found):
        start = {**server.average.params, **server.initial_head}
        trained = [plain.train(start, *plain.examples(k), part="body") for k in ids]
        bodies = [{"body": model["body"]} for model in trained]
        return server._replace(average=fed_average(server.average, bodies, ids))

    def personal(server, client, x, y):
        start = {**server.average.params, **server.initial_head}
        return plain.train(start, x, y, epochs=2)

    check("fedbabu", one_round, personal=personal, fine_tuning_epochs=2)


def test_fedbn():
    def one_round(server, clients, ids, found):
        common = server.average.params
        trained = []
        for k in ids:
            body = {**common["body"], **clients[k]["body"]}
            model = plain.train({**common, "body": body}, *plain.examples(k))
            clients[k] = {"body": {plain.NORM: model["body"][plain.NORM]}}
            trained.append({**model, "body": {"Dense_0": model["body"]["Dense_0"]}})
        return server._replace(average=fed_average(server.average, trained, ids))

    check("fedbn", one_round)


@pytest.mark.parametrize("hessian_free", [False, True])
def test_perfedavg(hessian_free):
    parts, alpha, delta = 2 + hessian_free, 0.05, 0.01
    local = LOCAL._replace(batch_size=6)

    def slope(model, x, y, number):
        cuts = [i * len(x) // parts for i in range(parts + 1)]
        rows = slice(cuts[number], cuts[number + 1])
        if rows.start == rows.stop:  # no examples, no gradient
            return jax.tree.map(jnp.zeros_like, model)
        return plain.gradient(plain.loss)(model, x[rows], y[rows])

    def train(model, x, y):
        for _ in range(plain.EPOCHS):
            for u, v in plain.batches(x, y, 6):
                adapted = plain.axpy(-alpha, slope(model, u, v, parts - 2), model)
                outer = slope(adapted, u, v, parts - 1)
                if hessian_free:
                    ahead = slope(plain.axpy(delta, outer, model), u, v, 0)
                    behind = slope(plain.axpy(-delta, outer, model), u, v, 0)
                    bent = plain.combine((0.5 / delta, -0.5 / delta), (ahead, behind))
                    outer = plain.axpy(-alpha, bent, outer)
                model = plain.step(model, outer, u)
        return model

    def one_round(server, clients, ids, found):
        trained = [train(server.params, *plain.examples(k)) for k in ids]
        return fed_average(server, trained, ids, [1] * len(ids))

    def personal(server, client, x, y):
        model, steps = server.params, 0
        while steps < 3:
            for u, v in plain.batches(x, y, 6 // parts):
                if steps < 3:
                    model = plain.step(
                        model, plain.gradient(plain.loss)(model, u, v), u, rate=alpha
                    )
                    steps += 1
        return model

    settings = {"alpha": alpha, "delta": delta, "adaptation_steps": 3}
    check(
        "perfedavg",
        one_round,
        personal=personal,
        local=local,
        hessian_free=hessian_free,
        **settings,
    )


def test_perfedavg_wants_batches_whose_parts_have_two_examples():
    small = LOCAL._replace(batch_size=3)
    with pytest.raises(UserError, match="batch_size is 3"):
        ALGORITHMS["perfedavg"](TASK, small)


def test_pfedme():
    lam, rate, inner, beta = 2.0, 0.05, 3, 1.5

    def one_round(server, clients, ids, found):
        w = server.params
        trained = []
        for k in ids:
            x, y = plain.examples(k)
            model = theta = w
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    for _ in range(inner):
                        slope = plain.gradient(plain.loss)(theta, u, v)
                        pull = plain.combine((1, lam, -lam), (slope, theta, model))
                        theta = plain.step(theta, pull, u, rate=rate)
                    model = plain.step(model, plain.combine((lam, -lam), (model, theta)), u)
            clients[k] = theta
            trained.append(model)
        mean = plain.average(trained, np.ones(len(ids)))
        moved = plain.combine((1 - beta, beta), (w, mean))
        return server._replace(params=plain.with_statistics(moved, plain.statistics(mean)))

    check(
        "pfedme",
        one_round,
        personal=lambda server, client, x, y: client,
        **{"lam": lam, "inner_steps": inner, "inner_rate": rate, "beta": beta},
    )


def test_apfl():
    rate = 0.2

    def mix(alpha, own, common):
        """Parameters are mixed; the statistics are the mixture's, which the client keeps."""
        mixed = plain.combine((alpha, 1 - alpha), (own, common))
        return plain.with_statistics(mixed, plain.statistics(own))

    def one_round(server, clients, ids, found):
        trained = []
        for k in ids:
            x, y = plain.examples(k)
            own, alpha, theta = clients[k].params, clients[k].alpha, server.params
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    mixed = mix(alpha, own, theta)
                    of_mixed = plain.gradient(plain.loss)(mixed, u, v)
                    gap = plain.axpy(-1, theta, own)
                    product = sum(map(jnp.vdot, *map(jax.tree.leaves, (of_mixed, gap))))
                    moved = plain.axpy(-plain.RATE * alpha, of_mixed, own)
                    own = plain.with_statistics(moved, plain.observed(mixed, u))
                    theta = plain.step(theta, plain.gradient(plain.loss)(theta, u, v), u)
                    alpha = jnp.clip(alpha - rate * product, 0, 1)
            clients[k] = clients[k]._replace(params=own, alpha=alpha)
            trained.append(theta)
        return fed_average(server, trained, ids, [1] * len(ids))

    check(
        "apfl",
        one_round,
        personal=lambda server, client, x, y: mix(client.alpha, client.params, server.params),
        alpha=0.3,
        alpha_rate=rate,
    )


def prototypes_of(total, counts, old):
    here = counts > 0
    means = total / jnp.where(here, counts, 1)[:, None]
    return old._replace(
        means=jnp.where(here[:, None], means, old.means), seen=jnp.asarray(old.seen | here)
    )


def aligned(model, x, y, known, lam):
    """The loss, and the pull of features in training mode to the prototypes."""
    gaps = jnp.mean((plain.features(model, x, True) - known.means[y]) ** 2, axis=1)
    return plain.loss(model, x, y) + lam * jnp.mean(gaps * known.seen[y])


@pytest.mark.parametrize("in_training", [False, True])
def test_fedproto(in_training):
    def one_round(server, clients, ids, found):
        known, total, counts = server.prototypes, 0, 0
        for k in ids:
            x, y = plain.examples(k)
            objective = (aligned, known, 2.0)
            if in_training:
                for _ in range(plain.EPOCHS):
                    for u, v in plain.batches(x, y):
                        total += plain.class_sums(plain.features(clients[k], u, True), v)
                        counts += plain.classes(v)
                        clients[k] = plain.train(clients[k], u, v, *objective, epochs=1)
            else:
                clients[k] = plain.train(clients[k], x, y, *objective)
                total += plain.class_sums(plain.features(clients[k], x, False), y)
                counts += plain.classes(y)
        return server._replace(prototypes=prototypes_of(total, counts, known))

    check("fedproto", one_round, lam=2.0, prototypes_in_training=in_training)


def test_fedpac():
    lam = 2.0

    def one_round(server, clients, ids, found):
        known, body = server.prototypes, server.average.params
        total, counts, offers, bodies = 0, 0, [], []
        for k in ids:
            x, y = plain.examples(k)
            start = {**body, **clients[k]}
            z = plain.features(start, x, False)  # judged, not trained: evaluation mode
            shares = plain.class_sums(z, y) / len(y)
            spread = jnp.mean(jnp.sum(z**2, axis=1)) - jnp.sum(shares**2)
            trained = head_then_body(start, x, y, aligned, known, lam)
            total += plain.class_sums(plain.features(trained, x, False), y)
            counts += plain.classes(y)
            offers.append(({"head": trained["head"]}, shares, jnp.maximum(spread, 0) / len(y)))
            bodies.append({"body": trained["body"]})
        heads, shares, variances = zip(*offers, strict=True)
        for number_of, k in enumerate(ids):
            gaps = jnp.stack([jnp.ravel(shares[number_of] - other) for other in shares])
            matrix = gaps @ gaps.T + jnp.diag(jnp.stack(variances))
            weights = simplex.minimize(matrix, jnp.ones(len(ids), bool))
            clients[k] = plain.combine(list(weights), heads)
        return server._replace(
            average=fed_average(server.average, bodies, ids),
            prototypes=prototypes_of(total, counts, known),
        )

    check("fedpac", one_round, lam=lam)


def test_fedkd():
    distillation, hidden = 0.7, 1.5

    def kl(target, of):
        target, of = jax.nn.log_softmax(target), jax.nn.log_softmax(of)
        return jnp.mean(jnp.sum(jnp.exp(target) * (target - of), axis=1))

    def objective(both, x, y):
        fixed = jax.lax.stop_gradient
        z, z_shared = (plain.features(both[name], x, True) for name in ("mentor", "mentee"))
        f, f_shared = plain.head(both["mentor"], z), plain.head(both["mentee"], z_shared)
        own, other = (jnp.mean(plain.entropies(out, y)) for out in (f, f_shared))
        mapped, scale = z_shared @ both["bridge"], fixed(own + other)
        own += (
            distillation * kl(fixed(f_shared), f) + hidden * jnp.mean((z - fixed(mapped)) ** 2)
        ) / scale
        other += (
            distillation * kl(fixed(f), f_shared) + hidden * jnp.mean((fixed(z) - mapped) ** 2)
        ) / scale
        return own + other

    def one_round(server, clients, ids, found):
        trained = []
        for k in ids:
            x, y = plain.examples(k)
            both = {**clients[k]._asdict(), "mentee": server.params}
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    slope = plain.gradient(objective)(both, u, v)
                    moved = {n: plain.step(both[n], slope[n], u) for n in ("mentor", "mentee")}
                    both = {**moved, "bridge": both["bridge"] - plain.RATE * slope["bridge"]}
            clients[k] = clients[k]._replace(mentor=both["mentor"], bridge=both["bridge"])
            trained.append(both["mentee"])
        return fed_average(server, trained, ids, [1] * len(ids))

    weights = {"distillation": distillation, "hidden": hidden}
    check("fedkd", one_round, energy_start=1.0, energy_end=1.0, **weights)


def test_fedkd_keeps_the_statistics_of_a_smaller_mentee():
    network = models.mlp_bn((federation.NUM_FEATURES,), federation.NUM_CLASSES, widths=(2,))
    mentee = tasks.classification(network, num_classes=federation.NUM_CLASSES)
    x, _ = plain.examples(1)  # one batch
    for mentor, observe in ((TASK, TASK.observe), (federation.task(), None)):
        local = LOCAL._replace(observe=observe, epochs=1)
        algorithm = ALGORITHMS["fedkd"](mentor, local, mentee=mentee, energy_start=1.0)
        server, _, output = one_client_update(algorithm, 1)
        model = averaging.apply(server, output.sum.message, averaging.PLAIN).params
        wanted = plain.observed(server.params, jnp.float32(x))
        federation.assert_close(plain.statistics(model), wanted)


def one_client_update(algorithm, client):
    """The update of one client in the first round: server, client and its output."""
    examples = jax.tree.map(jnp.asarray, federation.examples())
    server = algorithm.init_server(examples.population(), jax.random.key(0))
    state = algorithm.init_client(server, examples.profile(jnp.int32(client)), jax.random.key(1))
    context = core.Context(jax.random.key(2), jnp.int32(0), jnp.int32(1), jnp.int32(client))
    output = jax.jit(algorithm.update_client)(
        server, state, examples.of_client(jnp.int32(client)), context
    )
    return server, state, output


def test_fedcac():
    tau, beta = 0.5, 4.0
    numbers = itertools.count()

    def personal(server, client, x, y):
        return jax.tree.map(jnp.where, client.critical, client.params, server.average.params)

    def mask_of(end, begin):
        scores = np.abs((end - begin) * end)
        kept = np.sort(scores.ravel())[::-1][: int(tau * scores.size)]
        return (scores >= kept[-1]) & (scores > 0)

    def overlap(a, b):
        a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(m)]) for m in (a, b))
        return 1 - np.sum(a != b) / (2 * np.sum(a))

    def one_round(server, clients, ids, found):
        trained, critical = [], []
        for k in ids:
            start = personal(server, clients[k], None, None)
            model = plain.train(start, *plain.examples(k))
            mask = jax.tree.map(lambda e, b: mask_of(np.asarray(e), np.asarray(b)), model, start)
            mask = plain.with_statistics(mask, {n: np.zeros(4, bool) for n in ("mean", "var")})
            # A bias before the normalization moves by rounding errors only, which decide its mask.
            mask["body"]["Dense_0"]["bias"] = found[k].critical["body"]["Dense_0"]["bias"]
            trained.append(model)
            critical.append(mask)
        table = np.array([[overlap(a, b) for b in critical] for a in critical])
        others = ~np.eye(len(ids), dtype=bool)
        middle, most = table[others].mean(), table[others].max()
        threshold = middle + (next(numbers) + 1) / beta * (most - middle)
        for member, k in enumerate(ids):
            close_by = (table[member] >= threshold - 1e-6) | (np.arange(len(ids)) == member)
            mean = plain.average(
                [m for m, near in zip(trained, close_by, strict=True) if near],
                np.ones(close_by.sum()),
            )
            clients[k] = clients[k]._replace(params=mean, critical=critical[member])
        return server._replace(
            average=fed_average(server.average, trained, ids), threshold=threshold
        )

    check("fedcac", one_round, personal=personal, tau=tau, beta=beta)


def test_fedala():
    def upper(model):
        return {"body": {plain.NORM: model["body"][plain.NORM]}, "head": model["head"]}

    def mixture(weights, w, own, common):
        mixed = jax.tree.map(lambda v, c, s: v + s * (c - v), own, common, weights)
        body = {"Dense_0": w["body"]["Dense_0"], **mixed["body"]}
        return {"body": body, "head": mixed["head"]}

    def mixed_loss(weights, x, y, *models_of):
        return plain.loss(mixture(weights, *models_of), x, y)

    def aggregate(server, client, x, y):
        w, weights = server.params, client.weights
        own, common = upper(client.params), upper(w)

        gap = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), own, common)
        apart = max(jax.tree.leaves(gap)) > 0
        if apart:
            for u, v in plain.batches(x, y):
                slope = plain.gradient(mixed_loss)(weights, u, v, w, own, common)
                weights = jax.tree.map(lambda s, g: jnp.clip(s - g, 0, 1), weights, slope)
        for name in ("mean", "var"):  # statistics have no gradient, so they are the common ones
            assert np.all(weights["body"][plain.NORM][name] == 1)
        return mixture(weights, w, own, common), weights, client.started | apart

    def one_round(server, clients, ids, found):
        trained = []
        for k in ids:
            x, y = plain.examples(k)
            start, weights, started = aggregate(server, clients[k], x, y)
            model = plain.train(start, x, y)
            clients[k] = clients[k]._replace(
                params=model, weights=weights, started=np.asarray(started)
            )
            trained.append(model)
        return fed_average(server, trained, ids)

    settings = {"layers": 2, "share": 1.0, "first_passes": 1}
    check("fedala", one_round, personal=lambda *args: aggregate(*args)[0], **settings)


def test_fedem():
    learners = 2

    def rows(model):
        return [jax.tree.map(lambda leaf, m=m: leaf[m], model) for m in range(learners)]

    def responsibilities(received, mixture, x, y):
        judged = jnp.stack([plain.losses(model, x, y, train=False) for model in received])
        return jax.nn.softmax(jnp.log(mixture)[:, None] - judged, axis=0)

    def objective(model, x, y, received, mixture, m):
        return jnp.mean(responsibilities(received, mixture, x, y)[m] * plain.losses(model, x, y))

    def one_round(server, clients, ids, found):
        received = rows(server.average.params)
        trained = [[] for _ in received]
        for k in ids:
            x, y = plain.examples(k)
            for m, model in enumerate(received):
                given = (received, clients[k], m)
                trained[m].append(plain.train(model, x, y, objective, *given))
            clients[k] = jnp.mean(responsibilities(received, clients[k], x, y), axis=1)
        means = [plain.average(of_one, plain.sizes(ids)) for of_one in trained]
        stacked = jax.tree.map(lambda *leaf: jnp.stack(leaf), *means)
        return server._replace(average=server.average._replace(params=stacked))

    check("fedem", one_round, learners=learners)


def test_fedfomo():
    def distance(a, b):
        gaps = jax.tree.map(lambda u, v: jnp.sum((u - v) ** 2), *map(plain.parameters, (a, b)))
        return jnp.sqrt(sum(jax.tree.leaves(gaps)))

    def one_round(server, clients, ids, found):
        uploaded, affinity = server.uploaded.copy(), server.affinity.copy()
        table = [jax.tree.map(lambda leaf, k=k: leaf[k], server.models) for k in range(CLIENTS)]
        new = list(table)
        for k in ids:
            x, y = plain.examples(k)
            held = min(int(0.3 * len(x)), len(x) - 1)
            cut = len(x) - held

            def judge(model, u=x[cut:], v=y[cut:]):
                return plain.loss(model, u, v, train=False) if len(u) else 0.0

            client = clients[k]
            givers = [k, *(j for j in range(CLIENTS) if server.uploaded[j] and j != k)]
            candidates = [client.params, *(table[j] for j in givers[1:])]
            gains = []
            for model in candidates:
                far = distance(model, client.before)
                gain = (judge(client.before) - judge(model)) / (far + 1e-5)
                gains.append(float(gain) if far > 0 else 0.0)
            helpful = np.maximum(gains, 0)
            start = client.params
            if helpful.sum() > 0:
                start = plain.combine(helpful / helpful.sum(), candidates)
            new[k] = plain.train(start, x[:cut], y[:cut])
            clients[k] = client._replace(params=new[k], before=start)
            affinity[k, givers] += gains
            uploaded[k] = True
        models_now = jax.tree.map(lambda *leaf: np.stack(leaf), *new)
        return server._replace(models=models_now, uploaded=uploaded, affinity=affinity)

    check("fedfomo", one_round, models=8, exploration=0.0, validation_share=0.3)


def test_fedcp():
    lam = 2.0

    def mmd(a, b):
        def kernel(p, q):
            squares = jnp.sum((p[:, None] - q[None]) ** 2, axis=-1)
            return jnp.mean(sum(jnp.exp(-squares / (2 * s)) for s in (10, 15, 20, 50)))

        return kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)

    def outputs(own, common, policy, direction, x, train):
        z = plain.features(own, x, train)
        hidden = z * direction / jnp.linalg.norm(direction)
        hidden = hidden @ policy["linear"]["kernel"] + policy["linear"]["bias"]
        mean, var = (f(hidden, axis=1, keepdims=True) for f in (jnp.mean, jnp.var))
        hidden = (hidden - mean) / jnp.sqrt(var + 1e-5)
        hidden = jax.nn.relu(hidden * policy["norm"]["scale"] + policy["norm"]["bias"])
        share = jax.nn.softmax(hidden.reshape(len(x), 2, -1), axis=1)
        return plain.head(own, share[:, 0] * z) + plain.head(common, share[:, 1] * z), z

    def objective(own, policy, x, y, common, direction):
        out, z = outputs(own, common, policy, direction, x, True)
        return jnp.mean(plain.entropies(out, y)) + lam * mmd(z, plain.features(common, x, True))

    slopes = jax.jit(jax.grad(objective, argnums=(0, 1)))

    def one_round(server, clients, ids, found):
        common, trained = server.params["model"], []
        for k in ids:
            x, y = plain.examples(k)
            own, policy = {**common, **clients[k]}, server.params["policy"]
            direction = jnp.sum(own["head"]["kernel"], axis=1)
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    of_own, of_policy = slopes(own, policy, u, v, common, direction)
                    own = plain.step(own, of_own, u)
                    policy = plain.axpy(-plain.RATE, of_policy, policy)
            clients[k] = {"head": own["head"]}
            half = plain.combine((0.5, 0.5), (own["head"], common["head"]))
            trained.append({"model": {"body": own["body"], "head": half}, "policy": policy})
        return fed_average(server, trained, ids)

    check("fedcp", one_round, gumbel=0.0, lam=lam)


def test_every_method_is_held_against_a_plain_loop_or_refuses():
    tested = {name for name in globals() if name.startswith("test_")}
    for name, row in ALGORITHMS.items():
        refuses = "no_statistics" in row.needs  # which `registry_test.py` tests
        assert refuses != any(t.startswith(f"test_{name}") for t in tested)


@functools.cache
def task_with_normalization_in_the_head():
    """A body without normalization, and a head that begins with one."""

    class Head(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Dense(federation.NUM_CLASSES)(BatchNorm()(x))

    network = models.from_flax(Dense(4), Head(), (federation.NUM_FEATURES,))
    return tasks.classification(network, num_classes=federation.NUM_CLASSES)


@pytest.mark.parametrize("name", ["fedrep", "fedbabu"])
def test_statistics_of_a_frozen_head_follow_the_body(name):
    task = task_with_normalization_in_the_head()
    local = LOCAL._replace(observe=task.observe)
    if name == "fedrep":  # without its check of ranges: a head that is not trained at all
        algorithm = ALGORITHMS[name].factory.__wrapped__(task, local, head_epochs=0)
    else:
        algorithm = ALGORITHMS[name](task, local)
    server, client, output = one_client_update(algorithm, 0)
    moved = algorithm.server_update(
        server, core.Uploads(output.sum, ()), None, core.Context(jax.random.key(0), 0, 1)
    )
    before = algorithm.personalize(server, client, None, None) if name == "fedrep" else None
    if name == "fedrep":
        after = algorithm.personalize(moved, output.state, None, None)
    else:
        before, after = algorithm.global_params(server), algorithm.global_params(moved)
    kept = {**before["head"]["Dense_0"]}
    federation.assert_close(after["head"]["Dense_0"], kept)
    for statistic in ("mean", "var"):
        old, new = (m["head"]["BatchNorm_0"][statistic] for m in (before, after))
        assert federation.differ(new, old, least=1e-2)
    federation.assert_close(after["head"]["BatchNorm_0"]["scale"], jnp.ones(4))


def statistics_in(tree):
    """The running statistics, whatever holds the model."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [leaf for path, leaf in leaves if getattr(path[-1], "key", "") in ("mean", "var")]


@pytest.mark.parametrize(
    "name", ["fedavg", "scaffold", "fedper", "fedcac", "fedcp", "fedem", "fedgen", "fedpac"]
)
def test_a_server_optimizer_never_moves_statistics(name):
    settings = {"generator_steps": 1} if name == "fedgen" else {}
    by_optimizer = []
    for optimizer in (averaging.PLAIN, optax.adam(0.3), optax.sgd(3.0, momentum=0.9)):
        algorithm = ALGORITHMS[name](TASK, LOCAL, server_optimizer=optimizer, **settings)
        if not by_optimizer:
            server, _, output = one_client_update(algorithm, 0)
        server = algorithm.init_server(federation.examples().population(), jax.random.key(0))
        each = jax.tree.map(lambda leaf: leaf[None], output.each)
        cohort = core.Cohort(jnp.zeros(1, jnp.int32), jnp.full(1, 11), CLIENTS)
        context = core.Context(jax.random.key(0), jnp.int32(0), jnp.int32(1))
        moved = algorithm.server_update(server, core.Uploads(output.sum, each), cohort, context)
        by_optimizer.append(getattr(moved, "average", moved).params)
    average, *others = map(statistics_in, by_optimizer)
    assert len(average) == 2
    for other in others:
        federation.assert_close(other, average)
    for other in by_optimizer[1:]:
        assert federation.differ(other, by_optimizer[0])


def test_weight_decay_and_clipping_leave_statistics_alone():
    examples = jax.tree.map(jnp.asarray, federation.examples())
    context = core.Context(jax.random.key(0), jnp.int32(0), jnp.int32(1))
    model = TASK.init(jax.random.key(0))
    shifted = jax.tree.map(lambda leaf: leaf + 50, params.split_params(model, TASK.is_statistic)[0])
    far = params.replace_params(model, shifted)

    def trained(optimizer, anchor, client):
        rule = core.pulled_towards(TASK.loss, anchor, 1.0)
        data = examples.of_client(jnp.int32(client))
        return core.descend(
            rule, model, (), data, context, LOCAL, optimizer=optimizer, epochs=1
        ).params

    x, _ = plain.examples(1)  # one batch
    decayed = trained(optax.adamw(0.1, weight_decay=1.0), model, client=1)
    federation.assert_close(plain.statistics(decayed), plain.observed(model, jnp.float32(x)))
    # A pull towards a model with other statistics must not use up the norm that clipping allows.
    clipped = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1))
    federation.assert_close(trained(clipped, far, 0), trained(clipped, model, 0))


def test_a_client_without_a_step_is_excluded_from_the_groups_of_fedcac():
    local = LOCAL._replace(drop_remainder=True)  # clients of 3 and of 1 examples make no step
    all_clients = sampling.CohortPlan(num_clients=8, size=8)
    algorithm = ALGORITHMS["fedcac"](federation.task(), local._replace(observe=None))
    outcome = federation.run(algorithm, plan=all_clients, rounds=1)
    sizes = [
        sum(np.sum(leaf[k]) for leaf in jax.tree.leaves(outcome.clients.critical)) for k in range(8)
    ]
    idle = [k for k in range(8) if federation.SIZES[k] < 4]
    assert [k for k in range(8) if sizes[k] == 0] == idle and len(idle) == 2
    # Overlaps lie between 0 and 1, and so does a threshold that only real ones decide.
    assert 0 < outcome.server.threshold <= 1
    initial = outcome.clients.params["body"]["Dense_0"]["kernel"][8]
    for k in idle:
        np.testing.assert_array_equal(
            outcome.clients.params["body"]["Dense_0"]["kernel"][k], initial
        )
